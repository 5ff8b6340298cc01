"""Adapters on one loaded base: each answers as if it were alone, and no memory is shared across them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from appliance.engine.protocol import Delta, Generate, Message, Sampling
from appliance.errors import ApplianceError, ChildFailed, InvalidInput
from tests.engine import lora
from tests.engine.asking import add

if TYPE_CHECKING:
    from appliance.engine.runtime import Part, Runtime
    from appliance.engine.scheduler import Scheduler

pytestmark = pytest.mark.llama

SLOTS = 4
QUESTION = "What is the capital of France?"
# Room for two of the files that `lora.write` writes, and not for three.
BUDGET_BYTES = 700_000


@pytest.fixture(scope="module")
def adapted(starter_gguf: Path) -> Iterator[Runtime]:
    from appliance.engine.runtime import Runtime

    runtime = Runtime(
        starter_gguf,
        n_ctx=512,
        threads=1,
        slots=SLOTS,
        adapter_budget_bytes=BUDGET_BYTES,
        on_progress=lambda _fraction: None,
    )
    yield runtime
    runtime.vocabulary.close()


@pytest.fixture
def scheduler(adapted: Runtime) -> Iterator[Scheduler]:
    from appliance.engine.scheduler import Scheduler

    yield Scheduler(adapted, SLOTS)
    for sequence in range(adapted.n_sequences):
        adapted.forget(sequence)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    directory = tmp_path_factory.mktemp("adapters")
    written = [lora.write(directory / f"{seed}.gguf", seed) for seed in range(3)]
    assert 2 * written[0].stat().st_size < BUDGET_BYTES < 3 * written[0].stat().st_size
    return [str(path) for path in written]


def run(
    scheduler: Scheduler, adapters: list[str | None], max_tokens: int = 7
) -> dict[int, str | ApplianceError]:
    """Ask the same with each adapter at the same time; what each has answered."""
    for index, adapter in enumerate(adapters):
        request = Generate(
            id=index,
            prompt=[Message(role="user", content=QUESTION)],
            sampling=Sampling(temperature=0.0, max_tokens=max_tokens),
            adapter=adapter,
        )
        add(scheduler, request)
    answers: dict[int, str | ApplianceError] = dict.fromkeys(range(len(adapters)), "")
    while scheduler.busy:
        for event in scheduler.step():
            if isinstance(event, Delta):
                answers[event.id] = f"{answers[event.id]}{event.text}"
            elif hasattr(event, "error"):
                answers[event.id] = event.error
    return answers


def alone(adapted: Runtime, adapter: str | None) -> str | ApplianceError:
    """The answer of a scheduler of its own, which leaves nothing behind."""
    from appliance.engine.scheduler import Scheduler

    answer = run(Scheduler(adapted, SLOTS), [adapter])[0]
    for sequence in range(adapted.n_sequences):
        adapted.forget(sequence)
    return answer


def test_each_answers_at_the_same_time_as_it_does_alone(
    adapted: Runtime, scheduler: Scheduler, files: list[str]
) -> None:
    one, two, _ = files
    expected = {each: alone(adapted, each) for each in (None, one, two)}
    # Else the test could not tell them apart.
    assert len(set(expected.values())) == 3
    adapters = [None, one, two, None]
    assert run(scheduler, adapters) == dict(enumerate(map(expected.get, adapters)))


def test_beginning_is_reused_only_where_the_adapter_is_the_same(
    scheduler: Scheduler, files: list[str]
) -> None:
    one, two, _ = files
    tokens = list(range(100, 140))
    sequences = scheduler._sequences
    for adapter in (None, one):
        sequence = sequences.begin(tokens, adapter)
        assert sequences.held(sequence) == 0
        sequences.extend(sequence, tokens)
        sequences.release(sequence)
    assert [sequences.reusable(tokens, each) for each in (None, one, two)] == [39, 39, 0]
    assert sequences.cells() == 2 * len(tokens)


def test_turns_are_taken_and_each_lasts_some_steps(
    adapted: Runtime, scheduler: Scheduler, files: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance.engine.turns import STEPS_OF_A_TURN

    attached: list[str | None] = []
    decode = adapted.decode

    def watched(parts: list[Part]) -> list[int | None]:
        attached.append(adapted.adapters._attached)
        return decode(parts)

    monkeypatch.setattr(adapted, "decode", watched)
    run(scheduler, [files[0], None, files[1]], max_tokens=24)
    turns = [attached[0]]
    lengths = [0]
    for each in attached:
        if each != turns[-1]:
            turns.append(each)
            lengths.append(0)
        lengths[-1] += 1
    assert turns[:6] == [files[0], None, files[1]] * 2
    assert lengths[:6] == [STEPS_OF_A_TURN] * 6


def test_adapter_without_room_waits_until_another_is_used_no_more(
    adapted: Runtime, scheduler: Scheduler, files: list[str]
) -> None:
    expected = [alone(adapted, each) for each in files]
    assert run(scheduler, [*files, *files]) == dict(enumerate([*expected, *expected]))
    assert scheduler.load().adapters == 2


def test_adapter_that_was_unloaded_is_loaded_again(scheduler: Scheduler, files: list[str]) -> None:
    first = [run(scheduler, [each])[0] for each in files]
    assert [run(scheduler, [each])[0] for each in files] == first


@pytest.mark.parametrize(
    ("rows", "strength", "kind", "code"),
    [
        (100, 0.3, ChildFailed, "unloadable_adapter"),
        (20_000, 0.3, InvalidInput, "adapter_too_large"),
    ],
)
def test_bad_adapter_fails_its_own_request_and_no_other(
    scheduler: Scheduler,
    files: list[str],
    tmp_path: Path,
    rows: int,
    strength: float,
    kind: type,
    code: str,
) -> None:
    bad = str(lora.write(tmp_path / "bad.gguf", 9, rows=rows, strength=strength))
    answers = run(scheduler, [None, bad, files[0]])
    error = answers[1]
    assert isinstance(error, kind)
    assert error.code == code
    assert all(isinstance(answers[index], str) and answers[index] for index in (0, 2))


def test_file_that_is_no_adapter_or_not_there_is_told(
    scheduler: Scheduler, starter_gguf: Path, tmp_path: Path
) -> None:
    garbage = tmp_path / "garbage.gguf"
    garbage.write_bytes(b"GGUF" + bytes(range(200)))
    for path in (garbage, tmp_path / "none.gguf"):
        error = run(scheduler, [str(path)])[0]
        assert isinstance(error, ChildFailed)
        assert error.code == "unloadable_adapter"
    assert run(scheduler, [None])[0]


def test_cancelled_answer_leaves_its_adapter_to_others(
    adapted: Runtime, scheduler: Scheduler, files: list[str]
) -> None:
    expected = alone(adapted, files[0])
    for index, adapter in enumerate([files[0], files[1], None]):
        request = Generate(
            id=index,
            prompt=[Message(role="user", content="Count to a hundred.")],
            sampling=Sampling(temperature=0.0, max_tokens=100),
            adapter=adapter,
        )
        add(scheduler, request)
    for _ in range(6):
        scheduler.step()
    for index in range(3):
        scheduler.cancel(index)
    assert not scheduler.busy
    assert run(scheduler, [files[0]])[0] == expected
