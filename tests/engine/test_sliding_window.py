"""A beginning that was decoded once is worth the same where most layers look back over a window alone."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.engine import gemma

if TYPE_CHECKING:
    from appliance.engine.runtime import Runtime

pytestmark = pytest.mark.llama

# Both are several windows long, and the beginning's end is out of sight of the last token.
BEGINNING = 3 * gemma.WINDOW
PROMPT = 5 * gemma.WINDOW - 1


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return gemma.write(tmp_path_factory.mktemp("gemma") / "gemma.gguf")


@pytest.fixture
def windowed(file: Path) -> Iterator[Runtime]:
    from appliance.engine.runtime import Runtime

    runtime = Runtime(
        file, n_ctx=gemma.CONTEXT_LENGTH, threads=1, slots=4, on_progress=lambda _fraction: None
    )
    yield runtime
    runtime.vocabulary.close()


def tokens(seed: int, count: int) -> list[int]:
    import numpy as np

    return np.random.default_rng(seed).integers(0, 256, count).tolist()


def scores(runtime: Runtime, sequence: int, prompt: list[int], held: int = 0) -> Any:
    """After the prompt, of which a sequence holds the first tokens."""
    from appliance.engine.runtime import Part

    while len(prompt) - held > 128:
        runtime.decode([Part(prompt[held : held + 128], held, sequence, False)])
        held += 128
    (row,) = runtime.decode([Part(prompt[held:], held, sequence, True)])
    assert row is not None
    return runtime.scores(row).copy()


def relative(found: Any, expected: Any) -> float:
    import numpy as np

    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


def test_reused_beginning_gives_what_a_fresh_pass_gives(windowed: Runtime) -> None:
    prompt = tokens(1, PROMPT)
    fresh = scores(windowed, 0, prompt)
    windowed.forget(0)
    # Another went on from the same beginning, until a cache of windows alone would have let go of it.
    scores(windowed, 1, prompt[:BEGINNING] + tokens(2, 2400))
    windowed.copy(1, 2, BEGINNING)
    reused = scores(windowed, 2, prompt, held=BEGINNING)
    assert relative(reused, fresh) < 1e-2
    # The test would see it if the beginning were another.
    windowed.forget(1)
    other = scores(windowed, 3, tokens(3, BEGINNING) + prompt[BEGINNING:])
    assert relative(other, fresh) > 1e-1


def test_what_only_its_window_was_copied_of_is_not_put_on_the_shelf(
    windowed: Runtime, runtime: Runtime
) -> None:
    assert (windowed.saves, runtime.saves) == (False, True)


def test_scheduler_shares_a_beginning_of_several_windows(windowed: Runtime) -> None:
    from appliance.engine.protocol import Finished, Generate, Raw, Sampling
    from appliance.engine.scheduler import Scheduler
    from tests.engine.asking import add

    def ask(*prompts: list[int]) -> tuple[list[list[float]], list[int]]:
        scheduler = Scheduler(windowed, 4)
        likelihoods: dict[int, list[float]] = {}
        cached = {}
        for index, prompt in enumerate(prompts):
            sampling = Sampling(
                temperature=0.0, max_tokens=8, top_logprobs=0, logit_bias={256: -100.0}
            )
            add(scheduler, Generate(id=index, prompt=Raw(content=prompt), sampling=sampling))
            while scheduler.busy:
                for event in scheduler.step():
                    if isinstance(event, Finished):
                        cached[index] = event.cached_tokens
                    else:
                        seen = [each.logprob for each in event.likelihoods]
                        likelihoods.setdefault(index, []).extend(seen)
        for sequence in range(windowed.n_sequences):
            windowed.forget(sequence)
        return list(likelihoods.values()), list(cached.values())

    shared = tokens(1, BEGINNING)
    one, two = shared + tokens(2, 80), shared + tokens(3, 80)
    together, cached = ask(one, two)
    ((alone,), _) = ask(two)
    assert cached == [0, BEGINNING]
    assert len(alone) == 8
    assert together[1] == pytest.approx(alone, abs=1e-2)
