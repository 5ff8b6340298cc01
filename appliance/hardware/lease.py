"""Who holds how much of the device's memory, and why: a ledger that the kernel keeps true.

A lease is a file with a lock on it, and the lock is handed to the child that uses the memory: it ends when
the last process that has it ends, however that comes, and not a moment before. A daemon that is started
anew, or a second one, sees what children of another still hold. Only bytes that were asked for are counted;
nothing is measured here, and nobody is stopped.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

import msgspec

from appliance import durable
from appliance.errors import UNDECODABLE, Busy, InvalidInput, NoMemory

GIB = 1 << 30
Purpose = Literal["serving", "training", "release"]
# Below the state directory.
DIRECTORY = "leases"
_LEDGER_LOCK = "ledger.lock"
_SUFFIX = ".lease"


class Holding(msgspec.Struct, frozen=True, kw_only=True):
    """One lease as others see it: `holder` is a model or a job, `since` is in Unix seconds."""

    holder: str
    purpose: Purpose
    bytes: int
    since: int


class Lease:
    """Memory that has been granted. Whoever inherits the descriptor holds it, too."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        """Give up this process's part; the memory stays granted as long as a child has the descriptor."""
        os.close(self.descriptor)


class Ledger:
    """The leases in one directory, which all who share a device's memory use. For any thread."""

    def __init__(self, directory: Path, capacity_bytes: int) -> None:
        self._directory = directory
        self.capacity_bytes = capacity_bytes
        if not directory.is_dir():
            directory.mkdir(exist_ok=True)
            durable.give_to_owner_of_parent(directory)

    def grant(self, holder: str, purpose: Purpose, size_bytes: int) -> Lease:
        """Take so much; raises NoMemory naming who holds the rest, InvalidInput for more than there is."""
        if size_bytes > self.capacity_bytes:
            raise InvalidInput(
                "does_not_fit",
                f"{purpose} of {holder} needs {size_bytes / GIB:.2f} GiB of memory; this device has "
                f"{self.capacity_bytes / GIB:.2f} GiB for it",
                param="model",
                next_step="use a smaller model or quantization",
            )
        holding = Holding(holder=holder, purpose=purpose, bytes=size_bytes, since=int(time.time()))
        with self._locked():
            held = self._scan()
            free_bytes = max(0, self.capacity_bytes - sum(each.bytes for each in held))
            if size_bytes > free_bytes:
                raise _no_memory(holding, free_bytes, held)
            return self._write(holding)

    def holdings(self) -> list[Holding]:
        """What is held at this moment, oldest first."""
        with self._locked():
            return self._scan()

    @property
    def free_bytes(self) -> int:
        """What could be granted at this moment."""
        return max(0, self.capacity_bytes - sum(each.bytes for each in self.holdings()))

    def _write(self, holding: Holding) -> Lease:
        path = self._directory / f"{time.time_ns():020}-{os.getpid()}{_SUFFIX}"
        descriptor = self._open(path, os.O_RDWR | os.O_EXCL)
        try:
            # Nobody else looks before the ledger's own lock is given back.
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with durable.full_disk_as_error():
                _write_at_once(descriptor, msgspec.json.encode(holding))
        except BaseException:
            # Given up first: a file that cannot be removed is void, one that is held is counted.
            os.close(descriptor)
            path.unlink()
            raise
        return Lease(descriptor)

    def _open(self, path: Path, flags: int) -> int:
        """Open a file that may be new."""
        descriptor = os.open(path, flags | os.O_CREAT | os.O_CLOEXEC, 0o600)
        durable.give_to_owner_of_parent(path)
        return descriptor

    def _scan(self) -> list[Holding]:
        """Leases whose lock somebody has; the others are void, and their files go."""
        found = []
        for path in sorted(self._directory.glob(f"*{_SUFFIX}")):
            if path.is_symlink() or not path.is_file():
                # None of ours; to open a pipe would wait for ever.
                continue
            with path.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(_read(path, file.read()))
                else:
                    path.unlink()
        return found

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """A file of its own for each look: the lock is between threads as between processes."""
        lock = self._open(self._directory / _LEDGER_LOCK, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield
        finally:
            os.close(lock)


def serving_bytes(holdings: Iterable[Holding]) -> int:
    """What loaded models hold of it all."""
    return sum(each.bytes for each in holdings if each.purpose == "serving")


async def grant(ledger: Ledger, holder: str, purpose: Purpose, size_bytes: int) -> Lease:
    """`Ledger.grant`, off the event loop; who has been cancelled holds nothing.

    The thread cannot be stopped: a cancellation waits the moment that it takes, and what it was granted is
    given up before. Else the next to ask would find memory held by nobody.
    """
    task = asyncio.ensure_future(asyncio.to_thread(ledger.grant, holder, purpose, size_bytes))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(_give_up)
        await asyncio.wait({task})
        raise


def _give_up(task: asyncio.Future[Lease]) -> None:
    if not task.cancelled() and task.exception() is None:
        with task.result():
            pass


def _write_at_once(descriptor: int, data: bytes) -> None:
    if os.write(descriptor, data) < len(data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _read(path: Path, data: bytes) -> Holding:
    try:
        return msgspec.json.decode(data, type=Holding)
    except UNDECODABLE as exc:
        # Somebody holds memory, and nobody knows how much: nothing more can be granted safely.
        raise Busy(
            "unreadable_lease",
            f"{path} should say what its holder has been granted, but: {exc}",
            next_step="stop the appliance, and all of its children, and start it again",
        ) from exc


def _no_memory(wanted: Holding, free_bytes: int, held: list[Holding]) -> NoMemory:
    others = ", ".join(
        f"{each.holder} ({each.purpose}, {each.bytes / GIB:.2f} GiB)" for each in held
    )
    return NoMemory(
        "no_memory",
        f"{wanted.purpose} of {wanted.holder} needs {wanted.bytes / GIB:.2f} GiB of the device's memory; "
        f"{free_bytes / GIB:.2f} GiB are free, the rest is held by {others}",
        next_step="try again when that has ended",
        missing_bytes=wanted.bytes - free_bytes,
        serving_bytes=serving_bytes(held),
    )
