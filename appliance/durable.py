"""Durable writes: what was written survives a power cut, and nothing half-written has a final name.

The order is temp, fsync, rename, fsync directory: without the first fsync an ext4 power cut leaves an
empty file under the final name, without the second the rename itself can be lost (both measured).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance.errors import UNDECODABLE, ApplianceError, CorruptState, OutOfDisk

T = TypeVar("T")
_FAILED = (errno.EIO, errno.EROFS)
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# How the Rust libraries word an operating system's error, since theirs are no OSError (std::io::Error).
_RUST_NO_ROOM = tuple(f"(os error {number})" for number in _NO_ROOM)


def no_room(exc: BaseException) -> bool:
    """Whether the operating system refused a write for want of space, quota or permitted file size."""
    if isinstance(exc, OSError):
        return exc.errno in _NO_ROOM
    return any(words in str(exc) for words in _RUST_NO_ROOM)


def disk_failed(exc: BaseException) -> bool:
    """Whether the operating system says that the device itself could not read or write."""
    return isinstance(exc, OSError) and exc.errno in _FAILED


def out_of_disk(found: str, where: str = "the state directory") -> OutOfDisk:
    """The one wording for a full disk."""
    return OutOfDisk(
        "out_of_disk",
        f"{where} should have room for what is written there, but: {found}",
        next_step="free some space and try again",
    )


@contextlib.contextmanager
def full_disk_as_error(where: str = "the state directory") -> Iterator[None]:
    """Raise OutOfDisk where the operating system finds no room in `where`; any other error passes."""
    try:
        yield
    except ApplianceError:
        raise
    except Exception as exc:
        if not no_room(exc):
            raise
        raise out_of_disk(str(exc), where) from exc


def fsync_path(path: Path) -> None:
    """Flush one file or directory to the device."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def write_durably(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Replace `path` by `data` in one step that a power cut cannot tear."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def publish_directory(source: Path, destination: Path) -> None:
    """Flush everything below `source`, then give it its final name."""
    for directory, _, names in os.walk(source):
        for name in names:
            fsync_path(Path(directory, name))
        fsync_path(Path(directory))
    source.replace(destination)
    fsync_path(destination.parent)


def write_json(path: Path, value: object) -> None:
    """Write any msgspec-encodable value as indented JSON, durably."""
    write_durably(path, msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")


def read_json(path: Path, kind: type[T]) -> T:
    """Read and validate a JSON file as `kind`; raises CorruptState if it does not fit."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except (OSError, *UNDECODABLE) as exc:
        raise CorruptState(
            "unreadable_file", f"{path} should hold a {kind.__name__}, but: {exc}"
        ) from exc


def sha256_of_directory(directory: Path) -> str:
    """One digest over each file's name and own digest, sorted by name."""
    return sha256_of_digests({path.name: sha256_of(path) for path in directory.iterdir()})


def sha256_of_digests(digests: Mapping[str, str]) -> str:
    """That of a directory whose files have these digests by name."""
    digest = hashlib.sha256()
    for named in sorted(digests.items()):
        digest.update(msgspec.json.encode(named))
    return digest.hexdigest()


def sha256_of(path: Path) -> str:
    """Lower-case hexadecimal SHA-256 of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def give_to_owner_of_parent(path: Path) -> None:
    """What root makes in a service's directory belongs to the service, which has to read it, too."""
    if os.geteuid() == 0:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
