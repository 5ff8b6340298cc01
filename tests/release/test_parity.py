"""A release that is broken on purpose does not pass the gate, and its numbers are told."""

from __future__ import annotations

import json
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import durable
from appliance.child_records import ReleaseResult, TrainedBehaviour
from appliance.errors import ChildFailed
from appliance.records import Likeness, Parity, Quantization
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
def spec(starter: Path, starter_gguf: Path, trained: Path, converter: Path) -> dict[str, Any]:
    return trained_spec(starter, starter_gguf, trained, converter, quantizations=["Q8_0"])


def edit(path: Path, key: str, replace: Any) -> Path:
    """Change the value of a pair in a GGUF, in place: `replace(bytes behind the key)`, as long as before."""
    content = path.read_bytes()
    begin = content.index(struct.pack("<Q", len(key)) + key.encode()) + 8 + len(key)
    changed = content[:begin] + replace(content[begin:])
    assert len(changed) == len(content)
    assert changed != content
    path.write_bytes(changed)
    return path


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
        assert 100 < file.parity.in_prompts.positions <= 4 * 64
        assert 100 < file.parity.in_answers.positions <= 4 * 48

    @pytest.mark.parametrize("factor", [0.25, 2])
    def test_with_another_scale(
        self, factor: float, trained: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(trained, tmp_path / "adapter"))
        config = json.loads((other / "adapter_config.json").read_text())
        config["lora_alpha"] *= factor
        (other / "adapter_config.json").write_text(json.dumps(config))
        spec["trained"]["adapter_directory"] = str(other)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "parity_failed"
        assert "mean divergence in prompts may be 0.05; it is" in failure.message
        assert "as trained: " in failure.message
        assert "as released: " in failure.message
        assert failure.next_step is not None
        assert "adapter is kept" in failure.next_step

    def test_with_queries_and_keys_that_are_not_permuted(
        self, converter: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copytree(converter, tmp_path / "converter"))
        source = other / "conversion" / "llama.py"
        assert "undo_permute = True" in source.read_text()
        source.write_text(source.read_text().replace("undo_permute = True", "undo_permute = False"))
        spec["converter_directory"] = str(other)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "parity_failed"
        assert "mean divergence in answers" in failure.message

    def test_with_another_template(
        self, starter_gguf: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copy(starter_gguf, tmp_path / "base.gguf"))
        edit(other, "tokenizer.chat_template", lambda b: b.replace(b"<|im_end|>", b"<|im_out|>", 1))
        spec["trained"]["base_file"] = str(other)
        failure = refusal_of(tmp_path / "release", spec)
        assert failure.code == "release_check_failed"
        assert "chat template should be" in failure.message

    def test_with_another_end_of_turn(
        self, starter_gguf: Path, spec: dict[str, Any], tmp_path: Path
    ) -> None:
        other = Path(shutil.copy(starter_gguf, tmp_path / "base.gguf"))
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


def numbers(**changes: Any) -> Parity:
    good = Parity(
        in_answers=likeness(),
        in_prompts=likeness(),
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

    assert len(parity._faults(numbers(**changes), parity.BOUNDS[Quantization.Q4_K_M])) == count


def test_every_type_has_bounds_and_a_base_in_4_bits_wider_ones() -> None:
    from appliance.release import parity

    assert set(parity.BOUNDS) == set(Quantization)
    behaviour = TrainedBehaviour(base_in_4_bits=True, rows=(), answers=())
    for quantization, narrow in parity.BOUNDS.items():
        wide = parity.bounds(quantization, behaviour)
        assert wide.kl_in_answers > narrow.kl_in_answers
        assert wide.kl_in_prompts > narrow.kl_in_prompts
        assert wide.top1_agreement < narrow.top1_agreement
        full = msgspec.structs.replace(behaviour, base_in_4_bits=False)
        assert parity.bounds(quantization, full) == narrow


def test_divergence_is_the_textbooks_with_the_rest_as_one_token() -> None:
    import numpy as np

    from appliance.release import parity

    p, q = np.array([0.5, 0.2, 0.2, 0.1]), np.array([0.25, 0.25, 0.4, 0.1])
    whole = [(i, float(np.log(p[i]))) for i in range(4)]
    expected = float((p * np.log(p / q)).sum())
    assert parity._divergence(whole, np.log(q)) == pytest.approx(expected, abs=1e-6)
    part = float(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert parity._divergence(whole[:1], np.log(q)) == pytest.approx(part)
    assert parity._divergence(whole, np.log(p)) == pytest.approx(0, abs=1e-9)


def test_no_release_without_answers_to_compare(starter_gguf: Path) -> None:
    from appliance.release import parity

    with pytest.raises(ChildFailed, match="no answers"):
        parity.check(
            starter_gguf,
            TrainedBehaviour(base_in_4_bits=False, rows=(), answers=()),
            Quantization.Q4_K_M,
            None,
            threads=1,
            alive=lambda: None,
        )


@pytest.mark.parametrize(
    ("decided", "agrees", "expected"),
    [
        ([1, 1, 1, 1], [1, 0, 0, 1], 0.5),
        # What is not decided does not count, and where most is not, nothing does.
        ([1, 1, 0, 0], [1, 0, 0, 0], 0.5),
        ([1, 0, 0, 0], [0, 0, 0, 0], 1.0),
    ],
)
def test_only_decided_places_tell_whether_two_models_agree(
    decided: list[int], agrees: list[int], expected: float
) -> None:
    import numpy as np

    from appliance.release import parity

    found = parity._Answered(
        kl=np.array([1.0, 2.0, 3.0, 4.0]),
        decided=np.array(decided, bool),
        agrees=np.array(agrees, bool),
        own=[],
        ends=False,
    )
    told = parity._likeness([(found, slice(None))])
    assert told == Likeness(positions=4, mean_kl=2.5, top1_agreement=expected)
