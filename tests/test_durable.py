"""What is written is whole or not there, and reading checks it."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from pathlib import Path

import msgspec
import pytest

from appliance import durable
from appliance.batch import Failure
from appliance.errors import CorruptState, OutOfDisk


@pytest.fixture
def steps(monkeypatch):
    """The order of what reaches the device."""
    seen = []
    fsync, replace = os.fsync, os.replace

    def note_fsync(fd):
        seen.append(("fsync", str(Path(f"/proc/self/fd/{fd}").readlink())))
        fsync(fd)

    def note_rename(source, destination, **options):
        seen.append(("rename", str(destination)))
        replace(source, destination, **options)

    monkeypatch.setattr(os, "fsync", note_fsync)
    monkeypatch.setattr(os, "replace", note_rename)
    return seen


def test_content_is_flushed_before_the_rename_and_the_directory_after(tmp_path, steps):
    durable.write_durably(tmp_path / "file", b"content")
    kinds = [kind for kind, _ in steps]
    assert kinds == ["fsync", "rename", "fsync"]
    assert steps[0][1].endswith(".tmp")
    assert steps[1][1] == str(tmp_path / "file")
    assert steps[2][1] == str(tmp_path)
    assert (tmp_path / "file").read_bytes() == b"content"


def test_published_directory_is_flushed_file_by_file_before_its_name(tmp_path, steps):
    source = tmp_path / "source"
    (source / "inner").mkdir(parents=True)
    (source / "a").write_text("a")
    (source / "inner" / "b").write_text("b")
    durable.publish_directory(source, tmp_path / "final")
    before = [path for kind, path in steps[:4]]
    assert sorted(before) == sorted(
        str(source / name) if name else str(source) for name in ("", "a", "inner", "inner/b")
    )
    assert steps[4:] == [("rename", str(tmp_path / "final")), ("fsync", str(tmp_path))]
    assert (tmp_path / "final" / "inner" / "b").read_text() == "b"


def test_failed_write_leaves_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    durable.write_durably(path, b"old")

    def fail(_fd):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        durable.write_durably(path, b"new")
    assert path.read_bytes() == b"old"


def test_mode_is_given_from_the_first_byte_on(tmp_path):
    path = tmp_path / "secret"
    durable.write_durably(path, b"s", mode=0o600)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_json_comes_back_as_it_went(tmp_path):
    failure = Failure(code="c", message="Grüße \x00 \U0001f600", param=None, next_step="n")
    durable.write_json(tmp_path / "f.json", failure)
    assert durable.read_json(tmp_path / "f.json", Failure) == failure


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b'{"code": 1, "message": "m"}',
        b'{"code": "c"}',
        b"\xff",
        b"null",
        b'{"code": "a\xff", "message": "m"}',
        b"[" * 100_000,
    ],
)
def test_json_that_does_not_fit_is_corrupt_and_named(tmp_path, content):
    path = tmp_path / "f.json"
    path.write_bytes(content)
    with pytest.raises(CorruptState, match=r"f\.json should hold a Failure"):
        durable.read_json(path, Failure)


def test_missing_json_is_corrupt(tmp_path):
    with pytest.raises(CorruptState) as caught:
        durable.read_json(tmp_path / "none.json", msgspec.Struct)
    assert caught.value.code == "unreadable_file"


def test_digest_is_sha256(tmp_path):
    (tmp_path / "f").write_bytes(b"abc" * 100_000)
    assert durable.sha256_of(tmp_path / "f") == hashlib.sha256(b"abc" * 100_000).hexdigest()


def test_failed_write_leaves_no_temporary_file(tmp_path, monkeypatch):
    def fail(fd):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        durable.write_durably(tmp_path / "file", b"content")
    assert list(tmp_path.iterdir()) == []


FULL = [
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EDQUOT, "Disk quota exceeded"),
    RuntimeError("I/O error: No space left on device (os error 28)"),
]


@pytest.mark.parametrize("error", FULL)
def test_full_disk_is_known_however_it_is_told(error):
    with pytest.raises(OutOfDisk) as caught, durable.full_disk_as_error():
        raise error
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError(errno.EIO, "I/O error"), RuntimeError("(os error 5)")])
def test_other_errors_pass(error):
    with pytest.raises(type(error)) as caught, durable.full_disk_as_error():
        raise error
    assert caught.value is error


def test_digest_of_a_directory_tells_names_and_content_not_time(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    (source / "config.json").write_text("{}")
    digest = durable.sha256_of_directory(source)
    copy = Path(shutil.copytree(source, tmp_path / "copy", copy_function=shutil.copyfile))
    assert durable.sha256_of_directory(copy) == digest
    (copy / "LICENSE").write_text("text")
    with_licence = durable.sha256_of_directory(copy)
    (copy / "LICENSE").rename(copy / "NOTICE")
    assert len({digest, with_licence, durable.sha256_of_directory(copy)}) == 3
