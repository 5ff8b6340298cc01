"""A release that is broken on purpose does not pass the gate, and its numbers are told."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import durable
from appliance.child_records import ReleaseResult, TrainedAnswer, TrainedBehaviour
from appliance.errors import ChildFailed
from appliance.records import Likeness, Parity, Quantization, Strength
from appliance.settings import CHECKOUT
from tests.children import make_adapter
from tests.release.specs import refusal_of, release, trained_spec

pytestmark = [
    pytest.mark.torch,
    pytest.mark.llama,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.fixture(scope="module")
def trained(starter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the starter, and what the two do together."""
    return make_adapter(starter, tmp_path_factory.mktemp("trained"), deviation=0.12)


@pytest.fixture
def spec(starter: Path, starter_file: Path, trained: Path, converter: Path) -> dict[str, Any]:
    return trained_spec(starter, starter_file, trained, converter, quantizations=["Q8_0"])


def edit(path: Path, key: str, replace: Any) -> Path:
    """Change the value of a pair in a GGUF, in place: `replace(bytes behind the key)`, as long as before."""
    content = path.read_bytes()
    begin = content.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)
    changed = content[:begin] + replace(content[begin:])
    assert len(changed) == len(content)
    assert changed != content
    path.write_bytes(changed)
    return path


def merge(
    base: Path,
    base_file: Path,
    adapter_directory: Path,
    converter: Path,
    work: Path,
    factor: float,
    quantization: str = "Q8_0",
) -> tuple[Path, Strength]:
    """A release that adds `factor` times what was trained, the adapter beside it; what its weights tell."""
    paths = map(str, (base, base_file, adapter_directory, converter, work))
    argv = [sys.executable, "-m", "tests.release.wrong_scale", *paths, str(factor), quantization]
    done = subprocess.run(argv, cwd=CHECKOUT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    told = msgspec.json.decode(done.stdout.splitlines()[-1], type=Strength)
    return work / "wrong.gguf", told


def hold(
    merged: tuple[Path, Strength | None],
    base: Path,
    base_file: Path,
    trained: Path,
    *,
    base_in_4_bits: bool,
) -> Parity:
    from transformers import AutoTokenizer

    from appliance.release import parity, unmerged

    made, strength = merged
    behaviour = durable.read_json(trained / "behaviour.json", TrainedBehaviour)
    behaviour = msgspec.structs.replace(behaviour, base_in_4_bits=base_in_4_bits)
    beside = unmerged.of(
        base_file,
        made.with_name("adapter.gguf"),
        behaviour.answers,
        threads=2,
        alive=lambda: None,
    )
    return parity.check(
        made,
        behaviour,
        beside,
        Quantization.Q8_0,
        AutoTokenizer.from_pretrained(base),
        strength,
        threads=2,
        alive=lambda: None,
    )


@pytest.mark.slow
class TestBrokenRelease:
    def test_a_good_one_passes_and_its_numbers_are_kept(
        self, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        (file,) = release(tmp_path, spec).files
        assert durable.read_json(tmp_path / "result.json", ReleaseResult).files == (file,)
        assert file.parity is not None
        assert file.parity.answers == 4
        assert file.parity.stopped == file.parity.stopped_when_trained
        assert 0.001 < file.parity.in_prompts.mean_kl < 0.02
        assert 0.001 < file.parity.in_answers.mean_kl < 0.02
        assert file.parity.unmerged.positions == file.parity.in_prompts.positions
        assert 0.0001 < file.parity.unmerged.mean_kl < 0.1
        assert file.parity.strength is not None
        assert 0.99 < file.parity.strength.slope < 1.01
        assert file.parity.strength.error < 0.01
        assert 100 < file.parity.in_prompts.positions <= 4 * 64
        assert 100 < file.parity.in_answers.positions <= 4 * 48

    def test_whose_adapter_says_another_scale(
        self, trained: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(trained, tmp_path / "adapter"))
        config = json.loads((other / "adapter_config.json").read_text())
        config["lora_alpha"] *= 2
        (other / "adapter_config.json").write_text(json.dumps(config))
        spec["trained"]["adapter_directory"] = str(other)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "parity_failed"
        assert "training moved model.layers.0.mlp.down_proj.weight by" in failure.message
        assert failure.next_step is not None
        assert "adapter is kept" in failure.next_step

    @pytest.mark.parametrize("base_in_4_bits", [False, True])
    @pytest.mark.parametrize("factor", [0.0, 0.5, 2])
    def test_merged_with_another_scale(
        self,
        factor: float,
        base_in_4_bits: bool,
        starter: Path,
        starter_file: Path,
        trained: Path,
        converter: Path,
        tmp_path: Path,
    ) -> None:
        made = merge(starter, starter_file, trained, converter, tmp_path, factor)
        with pytest.raises(ChildFailed) as caught:
            hold(made, starter, starter_file, trained, base_in_4_bits=base_in_4_bits)
        assert caught.value.code == "parity_failed"
        assert "prompts from base and adapter unmerged may be" in caught.value.message
        assert "adds to the weights should be found in it" in caught.value.message
        assert "as trained: " in caught.value.message
        assert "as released: " in caught.value.message
        # What it does tells without what it holds, too.
        with pytest.raises(ChildFailed, match="unmerged may be"):
            hold((made[0], None), starter, starter_file, trained, base_in_4_bits=base_in_4_bits)

    @pytest.mark.parametrize("quantization", ["Q8_0", "Q2_K"])
    @pytest.mark.parametrize(("factor", "passes"), [(1, True), (0.5, False), (2, False)])
    def test_a_weak_adapter_merged_with_another_scale(
        self,
        factor: float,
        passes: bool,
        quantization: str,
        starter: Path,
        starter_file: Path,
        converter: Path,
        tmp_path: Path,
    ) -> None:
        # So little that the divergence of a wrong one is within every bound.
        weak = make_adapter(starter, tmp_path / "weak", deviation=0.02)
        made = merge(starter, starter_file, weak, converter, tmp_path, factor, quantization)
        assert made[1].slope == pytest.approx(factor, rel=0.15)
        if quantization != "Q8_0":
            from appliance.release import strength

            assert strength.keeps(made[1]) == passes
        elif passes:
            found = hold(made, starter, starter_file, weak, base_in_4_bits=True)
            assert found.strength == made[1]
        else:
            with pytest.raises(ChildFailed, match="adds to the weights should be") as caught:
                hold(made, starter, starter_file, weak, base_in_4_bits=True)
            assert "divergence" not in caught.value.message

    @pytest.mark.parametrize("base_in_4_bits", [False, True])
    def test_with_queries_and_keys_that_are_not_permuted(
        self,
        base_in_4_bits: bool,
        trained: Path,
        converter: Path,
        spec: dict[str, Any],
        tmp_path: Path,
    ) -> None:
        behaviour = durable.read_json(trained / "behaviour.json", TrainedBehaviour)
        changed = msgspec.structs.replace(behaviour, base_in_4_bits=base_in_4_bits)
        durable.write_json(tmp_path / "behaviour.json", changed)
        spec["trained"]["behaviour_file"] = str(tmp_path / "behaviour.json")
        other = Path(shutil.copytree(converter, tmp_path / "converter"))
        source = other / "conversion" / "llama.py"
        assert "undo_permute = True" in source.read_text()
        source.write_text(source.read_text().replace("undo_permute = True", "undo_permute = False"))
        spec["converter_directory"] = str(other)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "parity_failed"
        assert "prompts from base and adapter unmerged may be" in failure.message

    def test_with_another_template(
        self, starter_file: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copy(starter_file, tmp_path / "base.gguf"))
        edit(other, "tokenizer.chat_template", lambda b: b.replace(b"<|im_end|>", b"<|im_out|>", 1))
        spec["trained"]["base_file"] = str(other)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "release_check_failed"
        assert "chat template should be" in failure.message

    def test_with_another_end_of_turn(
        self, starter_file: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copy(starter_file, tmp_path / "base.gguf"))
        edit(
            other,
            "tokenizer.ggml.eos_token_id",
            lambda b: b[:4] + struct.pack("<I", 0) + b[8:],
        )
        spec["trained"]["base_file"] = str(other)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "release_check_failed"
        assert "eos token id should be 2; found 0" in failure.message

    def test_that_does_not_stop_where_the_trained_model_did(
        self, trained: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        behaviour = durable.read_json(trained / "behaviour.json", TrainedBehaviour)
        # Four tokens, and at most so many more are waited for.
        answers = [
            msgspec.structs.replace(
                each,
                answer=each.answer[:4],
                likely=each.likely[: 4 - len(each.answer)],
                stopped=True,
            )
            for each in behaviour.answers
        ]
        changed = msgspec.structs.replace(behaviour, answers=tuple(answers))
        durable.write_json(tmp_path / "behaviour.json", changed)
        spec["trained"]["behaviour_file"] = str(tmp_path / "behaviour.json")
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "parity_failed"
        assert re.search(r"4 answers should end by themselves; [01] do", failure.message)

    def test_that_splits_a_row_into_other_tokens(
        self, trained: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        behaviour = durable.read_json(trained / "behaviour.json", TrainedBehaviour)
        first = behaviour.rows[0]
        # As a BOS that is added, or left away.
        longer = msgspec.structs.replace(first, token_ids=(1, *first.token_ids))
        changed = msgspec.structs.replace(behaviour, rows=(longer, *behaviour.rows[1:]))
        durable.write_json(tmp_path / "behaviour.json", changed)
        spec["trained"]["behaviour_file"] = str(tmp_path / "behaviour.json")
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "parity_failed"
        assert f"line 1 should give the {len(first.token_ids) + 1} token ids" in failure.message
        assert "differs from place 1 on" in failure.message

    def test_without_word_of_the_trained_model(self, spec: dict[str, Any], tmp_path: Path) -> None:
        spec["trained"]["behaviour_file"] = str(tmp_path / "nowhere.json")
        assert refusal_of(tmp_path / "release", spec).code == "unreadable_file"


def likeness(mean_kl: float = 0.0, top1_agreement: float = 1.0) -> Likeness:
    return Likeness(positions=10, mean_kl=mean_kl, top1_agreement=top1_agreement)


def slope(found: float, **changes: float) -> Strength:
    return Strength(**({"slope": found, "error": 0.0} | changes))


def behaviour_of(**changes: Any) -> TrainedBehaviour:
    answer = TrainedAnswer(line=1, prompt=(1, 2), answer=(3,), stopped=False, likely=())
    plain = TrainedBehaviour(base_in_4_bits=False, moved={}, rows=(), answers=(answer,))
    return msgspec.structs.replace(plain, **changes)


def numbers(**changes: Any) -> Parity:
    good = Parity(
        in_answers=likeness(),
        in_prompts=likeness(),
        unmerged=likeness(),
        strength=slope(1.0),
        answers=8,
        equal_answers=8,
        stopped=8,
        stopped_when_trained=8,
    )
    return msgspec.structs.replace(good, **changes)


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"in_answers": likeness(0.3)}, 0),
        ({"in_answers": likeness(0.41)}, 1),
        ({"in_prompts": likeness(0.41)}, 1),
        ({"in_prompts": likeness(float("nan"))}, 1),
        ({"in_answers": likeness(0.5, 0.4)}, 2),
        # Whether prompts agree in their most likely tokens says nothing.
        ({"in_prompts": likeness(0.3, 0.1)}, 0),
        ({"stopped": 6}, 0),
        ({"stopped": 5}, 1),
        ({"stopped": 0, "stopped_when_trained": 0}, 0),
    ],
)
def test_each_number_has_its_bound(changes: dict[str, Any], count: int) -> None:
    from appliance.release import parity

    allowed = parity.BOUNDS[Quantization.Q4_K_M]
    assert len(parity._faults(numbers(**changes), allowed)) == count


@pytest.mark.parametrize(
    ("changes", "count"),
    [
        ({}, 0),
        ({"unmerged": likeness(0.39)}, 0),
        ({"unmerged": likeness(0.41)}, 1),
        ({"unmerged": likeness(float("nan"))}, 1),
        ({"strength": slope(0.81)}, 0),
        ({"strength": slope(0.79)}, 1),
        ({"strength": slope(1.21)}, 1),
        ({"strength": slope(0.78, error=0.006)}, 0),
        ({"strength": slope(0.78, error=0.004)}, 1),
        ({"strength": slope(1.22, error=0.006)}, 0),
        ({"strength": slope(0.0, error=0.09)}, 1),
        ({"strength": slope(0.0, error=0.11)}, 0),
        ({"strength": None}, 0),
        ({"unmerged": likeness(1.5), "strength": slope(0.5)}, 2),
    ],
)
def test_merging_has_bounds_of_its_own_and_an_adapter_may_be_to_blame(
    changes: dict[str, Any], count: int
) -> None:
    from appliance.release import parity
    from appliance.release.unmerged import Unmerged

    found = numbers(in_prompts=likeness(0.1), **changes)
    near = Unmerged(Quantization.Q4_K_M, [], kl_to_trained=0.1)
    assert len(parity._faults_of_merging(found, Quantization.Q8_0, near)) == count
    assert not parity.blames_adapter(found, Quantization.Q8_0, near)
    # What was trained is nearer to the release than to the adapter that is attached.
    far = Unmerged(Quantization.Q4_K_M, [], kl_to_trained=0.2)
    assert parity.blames_adapter(found, Quantization.Q8_0, far) == (count > 0)


def test_every_type_has_bounds_and_a_base_in_4_bits_wider_ones() -> None:
    from appliance.release import parity

    assert set(parity.BOUNDS) == set(Quantization)
    behaviour = behaviour_of(base_in_4_bits=True)
    for quantization, narrow in parity.BOUNDS.items():
        wide = parity.bounds(quantization, behaviour)
        assert wide.kl_in_answers > narrow.kl_in_answers
        assert wide.kl_in_prompts > narrow.kl_in_prompts
        assert wide.top1_agreement < narrow.top1_agreement
        full = msgspec.structs.replace(behaviour, base_in_4_bits=False)
        assert parity.bounds(quantization, full) == narrow


def test_no_release_without_answers() -> None:
    from appliance.release import parity

    with pytest.raises(ChildFailed, match="no answers"):
        parity.check_adapter({}, behaviour_of(answers=()))


def test_what_is_merged_is_held_against_what_the_trainer_had() -> None:
    import torch

    from appliance.release import parity
    from appliance.release.adapter import LoraPair

    torch.manual_seed(0)
    a, b = torch.randn(4, 20), torch.randn(30, 4)
    moved = {"x.weight": float(torch.linalg.norm(2.0 * b @ a))}
    expected = behaviour_of(moved=moved)
    parity.check_adapter({"x.weight": LoraPair(a, b, 2.0)}, expected)
    for other in (LoraPair(a, b, 2.01), LoraPair(a, 0.99 * b, 2.0), LoraPair(a, 0 * b, 2.0)):
        with pytest.raises(ChildFailed, match=r"training moved x\.weight by"):
            parity.check_adapter({"x.weight": other}, expected)
    for pairs in ({}, {"y.weight": LoraPair(a, b, 2.0)}):
        with pytest.raises(ChildFailed, match="should change the 1 weights that were trained"):
            parity.check_adapter(pairs, expected)
