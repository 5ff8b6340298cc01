"""Converter and runtime must be of one version."""

from __future__ import annotations

import asyncio
import importlib.metadata
from pathlib import Path

import msgspec
import pytest

from appliance.checks import converter
from appliance.settings import Settings

VERSION = "0.3.36"


@pytest.fixture
def laid_down(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Settings whose converter is of the same version as the runtime."""
    monkeypatch.setattr(importlib.metadata, "version", lambda name: VERSION)
    directory = tmp_path / "llama.cpp"
    directory.mkdir()
    (directory / converter.SCRIPT).write_text("")
    (directory / converter.VERSION_FILE).write_text(VERSION + "\n")
    return msgspec.structs.replace(settings, converter_dir=directory)


def test_same_version_is_ok(laid_down: Settings) -> None:
    assert asyncio.run(converter.check(laid_down)).outcome == "ok"


def test_other_version_fails_and_names_both(laid_down: Settings) -> None:
    (laid_down.converter_dir / converter.VERSION_FILE).write_text("0.3.1\n")
    found = asyncio.run(converter.check(laid_down))
    assert found.outcome == "failed"
    assert VERSION in found.found
    assert "0.3.1" in found.found


@pytest.mark.parametrize("missing", [converter.SCRIPT, converter.VERSION_FILE])
def test_missing_part_fails(laid_down: Settings, missing: str) -> None:
    (laid_down.converter_dir / missing).unlink()
    assert asyncio.run(converter.check(laid_down)).outcome == "failed"


def test_missing_runtime_fails(laid_down: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert asyncio.run(converter.check(laid_down)).outcome == "failed"
