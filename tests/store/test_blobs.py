"""Bytes are kept under their digest, whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import time
from pathlib import Path

import pytest

from appliance.errors import CorruptState, NotFound, TooLarge
from appliance.store.blobs import ABANDONED_SECONDS, COPY_BYTES, BlobStore

CONTENT = b"some content" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def blobs(tmp_path):
    return BlobStore(tmp_path / "blobs")


def keep(blobs, content=CONTENT):
    incoming = blobs.receive(io.BytesIO(content), limit_bytes=1 << 30)
    blobs.keep(incoming)
    blobs.discard(incoming)
    return incoming


def leftovers(tmp_path):
    return list((tmp_path / "blobs" / "incoming").iterdir())


@pytest.mark.parametrize("content", [b"", b"x", CONTENT, b"y" * (COPY_BYTES + 1)])
def test_kept_blob_is_found_by_its_digest(blobs, tmp_path, content):
    incoming = keep(blobs, content)
    assert incoming.sha256 == hashlib.sha256(content).hexdigest()
    assert incoming.bytes == len(content)
    assert blobs._path(incoming.sha256).read_bytes() == content
    assert leftovers(tmp_path) == []


def test_strange_directory_among_what_is_received_is_left_alone(blobs, tmp_path):
    strange = tmp_path / "blobs" / "incoming" / "lost+found"
    strange.mkdir()
    os.utime(strange, (0, 0))
    BlobStore(tmp_path / "blobs")
    assert leftovers(tmp_path) == [strange]


def test_shared_files_are_the_same_bytes_on_the_disk(blobs, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    for path in (first, second):
        path.write_bytes(CONTENT)
        blobs.share(path, DIGEST, sound=blobs.is_sound(DIGEST))
    assert first.samefile(second)
    assert first.samefile(blobs._path(DIGEST))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["blobs", "first", "second"]
    blobs.delete(DIGEST)
    assert first.read_bytes() == CONTENT


def test_a_damaged_blob_takes_no_files_place(blobs, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    keep(blobs)
    blobs._path(DIGEST).write_bytes(b"damaged")
    blobs.share(path, DIGEST, sound=blobs.is_sound(DIGEST))
    assert path.read_bytes() == CONTENT


def test_without_hard_links_there_are_two_files(blobs, tmp_path, monkeypatch):
    def refuse(source, destination):
        raise OSError(errno.EPERM, "Operation not permitted")

    keep(blobs)
    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "file"
    path.write_bytes(CONTENT)
    blobs.share(path, DIGEST, sound=blobs.is_sound(DIGEST))
    blobs.link(DIGEST, tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == path.read_bytes() == CONTENT
    monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "no")))
    with pytest.raises(OSError, match="no"):
        blobs.share(path, DIGEST, sound=blobs.is_sound(DIGEST))


def test_received_bytes_have_no_name_until_kept(blobs, tmp_path):
    incoming = blobs.receive(io.BytesIO(CONTENT), limit_bytes=1 << 20)
    with pytest.raises(NotFound):
        blobs.open(DIGEST)
    blobs.discard(incoming)
    assert leftovers(tmp_path) == []


def test_too_many_bytes_are_refused_and_removed(blobs, tmp_path):
    keep_exactly = blobs.receive(io.BytesIO(CONTENT), limit_bytes=len(CONTENT))
    blobs.discard(keep_exactly)
    with pytest.raises(TooLarge):
        blobs.receive(io.BytesIO(CONTENT), limit_bytes=len(CONTENT) - 1)
    assert leftovers(tmp_path) == []


def test_stream_that_breaks_leaves_nothing(blobs, tmp_path):
    class Breaking(io.RawIOBase):
        def read(self, size=-1):
            raise ConnectionError("gone")

    with pytest.raises(ConnectionError):
        blobs.receive(Breaking(), limit_bytes=10)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("damage", [b"", CONTENT[:-1], b"x" * len(CONTENT)])
def test_torn_blob_is_replaced_by_the_same_content(blobs, damage):
    keep(blobs)
    blobs._path(DIGEST).write_bytes(damage)
    keep(blobs)
    assert blobs._path(DIGEST).read_bytes() == CONTENT


def test_keeping_twice_is_durable_twice(blobs, monkeypatch):
    keep(blobs)
    flushed = []
    monkeypatch.setattr(
        os, "fsync", lambda fd: flushed.append(str(Path(f"/proc/self/fd/{fd}").readlink()))
    )
    keep(blobs)
    # An earlier process may have been killed between its rename and its fsync.
    assert str(blobs._path(DIGEST).parent) in flushed


def test_link_outlives_the_blob(blobs, tmp_path):
    keep(blobs)
    blobs.link(DIGEST, tmp_path / "mine")
    blobs.link(DIGEST, tmp_path / "mine")
    blobs.delete(DIGEST)
    blobs.delete(DIGEST)
    assert (tmp_path / "mine").read_bytes() == CONTENT
    with pytest.raises(NotFound):
        blobs.link(DIGEST, tmp_path / "other")


@pytest.mark.parametrize(
    "digest", ["", "../../etc/passwd", "a" * 63, "A" * 64, "a" * 64 + "\n", "/"]
)
def test_digest_that_is_none_never_becomes_a_path(blobs, digest):
    with pytest.raises(CorruptState):
        blobs.open(digest)
    with pytest.raises(CorruptState):
        blobs.delete(digest)


def test_what_a_dead_process_left_is_removed_and_what_is_arriving_stays(tmp_path):
    incoming = tmp_path / "blobs" / "incoming"
    incoming.mkdir(parents=True)
    old, fresh = incoming / "old", incoming / "fresh"
    for path in (old, fresh):
        path.write_bytes(b"x")
    long_ago = time.time() - ABANDONED_SECONDS - 1
    os.utime(old, (long_ago, long_ago))
    BlobStore(tmp_path / "blobs")
    assert [path.name for path in incoming.iterdir()] == ["fresh"]
