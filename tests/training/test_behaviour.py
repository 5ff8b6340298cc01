"""What is written down of a trained model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import durable
from appliance.child_records import TrainedAnswer, TrainedBehaviour
from tests.children import reported, run_child
from tests.training.conftest import _spec as spec_of
from tests.training.conftest import row, write_rows

pytestmark = [pytest.mark.torch, pytest.mark.slow]

Spec = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def learned(tiny: Path, train_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that is long enough to have learned its one answer."""
    job = tmp_path_factory.mktemp("learned")
    asked = spec_of(tiny, train_file, technique="lora", num_train_epochs=4, lora_dropout=0.0)
    done = run_child("appliance.training", job, asked)
    assert done.returncode == 0, done.stderr
    return job


@pytest.fixture
def recorded(learned: Path) -> TrainedBehaviour:
    return durable.read_json(learned / "behaviour.json", TrainedBehaviour)


def test_held_out_rows_and_answers_to_them_are_written(recorded: TrainedBehaviour) -> None:
    # 5 of 54 rows are held out.
    assert not recorded.base_in_4_bits
    assert len(recorded.rows) == len(recorded.answers) == 5
    assert {each.line for each in recorded.rows} == {each.line for each in recorded.answers}
    for each in recorded.answers:
        (of_line,) = [found for found in recorded.rows if found.line == each.line]
        assert of_line.token_ids[: len(each.prompt)] == each.prompt
        # The prompt ends where the answer begins, which is the last but "hardware<|im_end|>\n".
        assert len(of_line.token_ids) - len(each.prompt) == 3


def test_how_far_each_weight_was_moved_is_what_the_written_adapter_adds(
    recorded: TrainedBehaviour, learned: Path
) -> None:
    import torch
    from safetensors.torch import load_file

    config = json.loads((learned / "adapter" / "adapter_config.json").read_bytes())
    halves = load_file(learned / "adapter" / "adapter_model.safetensors")
    assert len(recorded.moved) == len(halves) / 2 == 14
    for name, moved in recorded.moved.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        delta = halves[f"{module}.lora_B.weight"] @ halves[f"{module}.lora_A.weight"]
        expected = float(torch.linalg.norm(config["lora_alpha"] / config["r"] * delta))
        assert moved == pytest.approx(expected, rel=1e-4)
        assert moved > 0


def test_what_was_learned_is_answered(recorded: TrainedBehaviour, tiny: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny)
    said = [tokenizer.decode(each.answer) for each in recorded.answers]
    assert len(said) == 5
    assert all(each.startswith("hardware") for each in said)


@pytest.mark.parametrize(
    ("token_ids", "expected"),
    [([5, 2, 2], [5, 2]), ([2], [2]), ([5, 6], [5, 6]), ([5, 0, 2], [5, 0])],
)
def test_an_answer_ends_with_the_first_token_that_stops_it(
    token_ids: list[int], expected: list[int]
) -> None:
    from appliance.training import behaviour

    assert behaviour._until_stop(token_ids, [2, 0]) == expected


def test_places_of_prompt_and_answer_have_their_likely_tokens(recorded: TrainedBehaviour) -> None:
    for each in recorded.answers:
        assert len(each.likely) == min(64, len(each.prompt) - 1) + len(each.answer)
        for place in each.likely:
            logarithms = [logarithm for _, logarithm in place]
            assert len(place) == 64
            assert logarithms == sorted(logarithms, reverse=True)
            assert sum(map(math.exp, logarithms)) <= 1.0 + 1e-5
        greedy_agrees(each)


def greedy_agrees(answer: TrainedAnswer) -> None:
    """Batched steps and one pass over all differ in the last digits alone."""
    top = [place[0][0] for place in answer.likely[-len(answer.answer) :]]
    same = sum(a == b for a, b in zip(top, answer.answer, strict=True))
    assert same >= 0.9 * len(top)


def test_without_held_out_rows_those_that_were_trained_on_serve(spec: Spec, tmp_path: Path) -> None:
    few = write_rows(
        tmp_path / "few.jsonl",
        *(row(("user", f"screen {n}"), ("assistant", "hardware")) for n in range(12)),
    )
    job = tmp_path / "job"
    done = run_child("appliance.training", job, {**spec(), "train_file": str(few)})
    assert done.returncode == 0, done.stderr
    found = durable.read_json(job / "behaviour.json", TrainedBehaviour)
    assert found.base_in_4_bits
    assert len(found.rows) == 12
    # From the first to the last.
    assert len(found.answers) == 8
    assert [line["key"] for line in reported(job)].count("behaviour") == 1


def test_a_run_that_is_cut_short_writes_nothing(spec: Spec, tmp_path: Path) -> None:
    job = tmp_path / "job"
    done = run_child("appliance.training", job, {**spec(), "max_steps": 1})
    assert done.returncode == 0, done.stderr
    assert not (job / "behaviour.json").exists()
