"""Whether llama.cpp decodes here is decided by a real answer, before any model has been imported too."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from appliance.checks import decode
from appliance.errors import ChildFailed
from appliance.settings import Settings
from tests.children import starter_gguf
from tests.daemon_process import add_base

__all__ = ["starter_gguf"]


@pytest.fixture
def starters(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty directory in the place of the installer's."""
    directory = tmp_path / "starter"
    directory.mkdir()
    monkeypatch.setattr(decode, "STARTER", directory)
    return directory


def test_without_any_model_it_says_that_nothing_was_checked(
    settings: Settings, starters: Path
) -> None:
    found = asyncio.run(decode.check(settings))
    assert found.outcome == "not checked"
    assert found.next_step


@pytest.mark.llama
def test_starter_answers_when_nothing_has_been_imported(
    settings: Settings, starters: Path, starter_gguf: Path
) -> None:
    (starters / starter_gguf.name).symlink_to(starter_gguf)
    found = asyncio.run(decode.check(settings))
    assert found.outcome == "ok"
    assert starter_gguf.name in found.found
    assert f"{decode.MAX_TOKENS} tokens" in found.found


def test_looking_makes_no_state_directory(settings: Settings, starters: Path) -> None:
    found = asyncio.run(decode.check(settings))
    assert "no model yet" in found.found
    assert not settings.state_dir.exists()


@pytest.mark.llama
def test_imported_model_that_is_no_gguf_fails_the_check(settings: Settings, starters: Path) -> None:
    add_base(settings.state_dir)
    with pytest.raises(ChildFailed) as caught:
        asyncio.run(decode.check(settings))
    assert caught.value.code == "unloadable_model"
