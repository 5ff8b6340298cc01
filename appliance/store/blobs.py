"""Content-addressed bytes: each blob is named by the SHA-256 of its content and never changes.

Knows nothing of what the bytes mean or who refers to them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import hashlib
import logging
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from appliance import durable
from appliance.errors import CorruptState, NotFound, TooLarge

logger = logging.getLogger(__name__)

# What a file system without hard links, or with too many of one, says to another (link(2)).
_NO_LINKS = (errno.EMLINK, errno.EPERM, errno.EXDEV, errno.EOPNOTSUPP)
_SHA256 = re.compile(r"[0-9a-f]{64}")
COPY_BYTES = 1 << 20
# A temporary file older than this belongs to a process that is gone.
ABANDONED_SECONDS = 24 * 3600


@dataclasses.dataclass(frozen=True)
class Incoming:
    """Bytes that have arrived under a temporary name."""

    path: Path
    sha256: str
    bytes: int


class BlobStore:
    """Blobs in a directory tree."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._incoming = directory / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True)
        self._remove_abandoned()

    def receive(self, source: BinaryIO, *, limit_bytes: int) -> Incoming:
        """Copy a stream into the store under a temporary name; durable, but not yet kept."""
        temporary = self._incoming / secrets.token_hex(16)
        try:
            digest, size = _copy(source, temporary, limit_bytes)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        return Incoming(temporary, digest, size)

    def keep(self, incoming: Incoming) -> None:
        """Give what was received its final name. Durable when this returns."""
        final = self._path(incoming.sha256)
        # A blob that is there already is used only if it still is what its name says.
        if not (final.is_file() and durable.sha256_of(final) == incoming.sha256):
            final.parent.mkdir(exist_ok=True)
            incoming.path.replace(final)
        # Even then: whoever put it there may have been killed before its name was on the device.
        durable.fsync_path(final.parent)
        durable.fsync_path(self._directory)

    def discard(self, incoming: Incoming) -> None:
        """Remove what was received and not kept; not an error after `keep`."""
        incoming.path.unlink(missing_ok=True)

    def open(self, digest: str) -> BinaryIO:
        """The blob, for reading; raises NotFound if there is none."""
        with _missing_as_error(digest):
            return self._path(digest).open("rb")

    def link(self, digest: str, destination: Path) -> None:
        """Give the blob a second name outside the store, which outlives its deletion here."""
        with _missing_as_error(digest), contextlib.suppress(FileExistsError):
            try:
                os.link(self._path(digest), destination)
            except OSError as exc:
                if exc.errno not in _NO_LINKS:
                    raise
                # Also where root imported a model, and the service may not link what is root's.
                shutil.copyfile(self._path(digest), destination)
                durable.fsync_path(destination)
        durable.fsync_path(destination.parent)

    def has(self, digest: str) -> bool:
        """Whether there is a blob of this digest."""
        return self._path(digest).is_file()

    def is_sound(self, digest: str) -> bool:
        """Whether there is a blob of this digest, and it still is what its name says."""
        return self.has(digest) and durable.sha256_of(self._path(digest)) == digest

    def share(self, path: Path, digest: str, *, sound: bool) -> None:
        """Let a file outside the store, whose digest this is, and the blob be the same bytes on the disk.

        Neither is ever written to. A blob that is there is used only if it is `sound`. Where the file system
        has no hard links, they are two.
        """
        blob = self._path(digest)
        blob.parent.mkdir(exist_ok=True)
        durable.give_to_owner_of_parent(blob.parent)
        with _without_links(path):
            try:
                os.link(path, blob)
                durable.fsync_path(blob.parent)
                durable.fsync_path(self._directory)
            except FileExistsError:
                if sound:
                    self._replace_by_blob(path, blob)

    def _replace_by_blob(self, path: Path, blob: Path) -> None:
        # It may have gone meanwhile.
        with contextlib.suppress(FileNotFoundError):
            if path.samefile(blob):
                return
            other = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
            os.link(blob, other)
            other.replace(path)
            durable.fsync_path(path.parent)

    def delete(self, digest: str) -> None:
        """Forget a blob; not an error if it is gone already."""
        self._path(digest).unlink(missing_ok=True)

    def digests(self) -> set[str]:
        """Of every blob."""
        return {path.name for path in self._directory.glob("??/*") if _SHA256.fullmatch(path.name)}

    def _path(self, digest: str) -> Path:
        if not _SHA256.fullmatch(digest):
            raise CorruptState(
                "invalid_digest", f"a digest has 64 hexadecimal digits; found {digest!r}"
            )
        return self._directory / digest[:2] / digest

    def _remove_abandoned(self) -> None:
        for leftover in self._incoming.iterdir():
            # Another process may finish with it in this moment.
            with contextlib.suppress(FileNotFoundError):
                # Nothing else is ours: a directory was put there by somebody.
                if (
                    leftover.is_file()
                    and time.time() - leftover.stat().st_mtime > ABANDONED_SECONDS
                ):
                    leftover.unlink()


@contextlib.contextmanager
def _without_links(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in _NO_LINKS:
            raise
        logger.info("a file is kept twice", extra={"file": str(path), "reason": exc.strerror})


@contextlib.contextmanager
def _missing_as_error(digest: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise NotFound(
            "no_such_blob", f"the blob store holds nothing with digest {digest}"
        ) from None


def _copy(source: BinaryIO, destination: Path, limit_bytes: int) -> tuple[str, int]:
    hasher, size = hashlib.sha256(), 0
    with destination.open("xb") as file:
        while chunk := source.read(COPY_BYTES):
            size += len(chunk)
            if size > limit_bytes:
                raise TooLarge(
                    "file_too_large",
                    f"a file may have {limit_bytes} bytes; this one has more",
                    param="file",
                    next_step="split it, or ask the operator to raise max_upload_bytes",
                )
            hasher.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    return hasher.hexdigest(), size
