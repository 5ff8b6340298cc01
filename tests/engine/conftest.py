"""The starter model, for every test of the engine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from appliance.engine.runtime import Runtime

VARIABLE = "APPLIANCE_TEST_STARTER_GGUF"


@pytest.fixture(scope="session")
def starter_gguf() -> Path:
    """A real instruct model of 135M parameters, with a chat template."""
    path = os.environ.get(VARIABLE)
    if not path or not Path(path).is_file():
        pytest.fail(f"{VARIABLE} should name the starter base model's GGUF file; it is {path!r}")
    return Path(path)


@pytest.fixture(scope="session")
def _loaded(starter_gguf: Path) -> Iterator[Runtime]:
    from appliance.engine.runtime import Runtime

    runtime = Runtime(
        starter_gguf, n_ctx=256, threads=1, slots=4, on_progress=lambda _fraction: None
    )
    yield runtime
    runtime.vocabulary.close()


@pytest.fixture
def runtime(_loaded: Runtime) -> Iterator[Runtime]:
    """The starter model with a context of 256 tokens for 4 answers, that holds nothing."""
    yield _loaded
    for sequence in range(_loaded.n_sequences):
        _loaded.forget(sequence)
