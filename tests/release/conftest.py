"""Real models for the child's tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.children import converter, make_adapter, starter, starter_gguf, starter_import, tiny
from tests.release.specs import base_spec, release, trained_spec

__all__ = ["converter", "starter", "starter_gguf", "starter_import", "tiny"]


@pytest.fixture(scope="session")
def adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tiny, tmp_path_factory.mktemp("adapter"), deviation=0.05)


@pytest.fixture(scope="session")
def tiny_file(tiny: Path, converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny base as it is served, in eight bits."""
    spec = base_spec(tiny, converter, model_name="tiny", quantizations=["Q8_0"])
    (file,) = release(tmp_path_factory.mktemp("tiny-file"), spec).files
    return Path(file.path)


@pytest.fixture(scope="session")
def starter_file(starter: Path, converter: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The starter model as it is served where there is room, in eight bits."""
    spec = base_spec(starter, converter, model_name="starter", quantizations=["Q8_0"])
    (file,) = release(tmp_path_factory.mktemp("starter-file"), spec).files
    return Path(file.path)


@pytest.fixture(scope="session")
def released(
    tiny: Path,
    tiny_file: Path,
    adapter: Path,
    converter: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """The directory in which the release child has released tiny base and adapter."""
    directory = tmp_path_factory.mktemp("released")
    release(directory, trained_spec(tiny, tiny_file, adapter, converter))
    return directory
