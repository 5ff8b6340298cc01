"""The starter model, for every test of the engine."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

VARIABLE = "APPLIANCE_TEST_STARTER_GGUF"


@pytest.fixture(scope="session")
def starter_gguf() -> Path:
    """A real instruct model of 135M parameters, with a chat template."""
    path = os.environ.get(VARIABLE)
    if not path or not Path(path).is_file():
        pytest.fail(f"{VARIABLE} should name the starter base model's GGUF file; it is {path!r}")
    return Path(path)
