"""The state directory is tried by writing to it."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from appliance.checks import state_directory
from appliance.errors import ConfigurationError
from appliance.settings import Settings


def test_writable_directory_is_ok(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_directory, "COMFORTABLE_BYTES", 1)
    settings.state_dir.mkdir()
    found = asyncio.run(state_directory.check(settings))
    assert (found.outcome, found.next_step) == ("ok", None)
    assert "will make" not in found.found
    assert list(settings.state_dir.iterdir()) == []


def test_directory_that_is_not_there_is_left_to_the_daemon(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(state_directory, "COMFORTABLE_BYTES", 1)
    elsewhere = msgspec.structs.replace(settings, state_dir=settings.state_dir / "a" / "b")
    found = asyncio.run(state_directory.check(elsewhere))
    assert found.outcome == "ok"
    assert "which the daemon will make" in found.found
    assert not settings.state_dir.exists()


def test_little_room_is_a_warning(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(state_directory, "COMFORTABLE_BYTES", 1 << 60)
    found = asyncio.run(state_directory.check(settings))
    assert found.outcome == "warning"
    assert "free some space" in (found.next_step or "")


def test_place_that_cannot_be_a_directory_fails(settings: Settings, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    elsewhere = msgspec.structs.replace(settings, state_dir=tmp_path / "file" / "state")
    with pytest.raises(ConfigurationError) as caught:
        asyncio.run(state_directory.check(elsewhere))
    assert "--state-dir" in (caught.value.next_step or "")
