"""Files with settings from outside are read within bounds, and what is wrong with one is said."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from appliance import fields


def test_values_are_read(tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text('a = 1\nb.c = "ü"')
    assert fields.read_toml(path) == {"a": 1, "b": {"c": "ü"}}
    assert fields.read_toml(Path(os.devnull)) == {}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"no toml", "Expected"),
        (b"a = \xff", "utf-8"),
        (b"a = " + b"[" * 100_000, "nest too deep"),
        (b"a = " + b"9" * 5_000, "digits"),
        (b"#" * (1 << 20) + b"\n", "larger than 1 MiB"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "a.toml"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words):
        fields.read_toml(path)


def test_pipes_and_endless_files_keep_nobody_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="it is a pipe"):
        fields.read_toml(tmp_path / "pipe")
    with pytest.raises(ValueError, match="larger than 1 MiB"):
        fields.read_toml(Path("/dev/zero"))
    with pytest.raises(OSError, match="directory"):
        fields.read_toml(tmp_path)
