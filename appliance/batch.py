"""The directory contract between the daemon and a batch child.

`spec.json` goes in; `metrics.jsonl` grows; `result.json` is written last, by rename, so that its
existence means complete. A child that cannot go on writes `error.json` and exits with status 1.
Any stage can be run by hand (`python -m appliance.training DIRECTORY`) and run again after a kill.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import msgspec

from appliance import durable, process
from appliance.child_records import Progress
from appliance.errors import ApplianceError, ChildFailed

SPEC = "spec.json"
RESULT = "result.json"
ERROR = "error.json"
METRICS = "metrics.jsonl"
HEARTBEAT = "heartbeat"
LOCK = "lock"
# A predecessor whose daemon has died is gone within 5 s; waiting longer means that it is not.
LOCK_WAIT_SECONDS = 15.0


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """`error.json` of a batch child: an `ApplianceError` put on disk."""

    code: str
    message: str
    param: str | None = None
    next_step: str | None = None


class Reporter:
    """Appends progress to `metrics.jsonl` and shows life between reports."""

    def __init__(self, directory: Path) -> None:
        self._metrics = directory / METRICS
        self._heartbeat = directory / HEARTBEAT

    def report(
        self,
        key: str,
        message: str,
        *,
        level: Literal["info", "warn", "error"] = "info",
        data: dict[str, Any] | None = None,
        eta_seconds: float | None = None,
    ) -> None:
        """Append one line; whole lines only, so that a reader never sees half of one as complete."""
        line = msgspec.json.encode(
            Progress(key=key, message=message, level=level, data=data, eta_seconds=eta_seconds)
        )
        fd = os.open(self._metrics, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(fd, line + b"\n")
        finally:
            os.close(fd)

    def alive(self) -> None:
        """Push the stall timeout forward without reporting anything."""
        self._heartbeat.touch()


def run(main: Callable[[Path, Reporter], object]) -> None:
    """Entry point of a batch child: arm the guard, lock the directory, run `main`, store its result."""
    process.die_with_parent()
    os.environ.update(process.OFFLINE_ENVIRONMENT)
    if len(sys.argv) != 2:
        sys.exit(f"usage: python -m {_module_name()} DIRECTORY")
    directory = Path(sys.argv[1]).resolve()
    with (directory / LOCK).open("w") as lock:
        _lock(lock.fileno(), directory)
        if (directory / RESULT).exists():
            return
        (directory / ERROR).unlink(missing_ok=True)
        # Of a predecessor that was killed while it wrote.
        for torn in directory.glob(".*.tmp"):
            torn.unlink()
        reporter = Reporter(directory)
        try:
            with durable.full_disk_as_error():
                # Tied to its parent by now, it may be paused.
                reporter.alive()
                durable.write_json(directory / RESULT, _run(main, directory, reporter))
        except ApplianceError as exc:
            failure = Failure(
                code=exc.code, message=exc.message, param=exc.param, next_step=exc.next_step
            )
            durable.write_json(directory / ERROR, failure)
            sys.exit(f"{exc.code}: {exc}")


def _run(main: Callable[[Path, Reporter], object], directory: Path, reporter: Reporter) -> object:
    try:
        return main(directory, reporter)
    except OSError as exc:
        if not durable.disk_failed(exc):
            raise
        raise ChildFailed(
            "disk_failed",
            f"the disk should be read and written, but: {exc}",
            next_step="look for the disk in the kernel's log (dmesg), and at its health (smartctl)",
        ) from exc


def failure_of(directory: Path, child: process.Child) -> ChildFailed:
    """What went wrong in a child that left no result, as an error of ours."""
    path = directory / ERROR
    if path.exists():
        failure = durable.read_json(path, Failure)
        return ChildFailed(
            failure.code, failure.message, param=failure.param, next_step=failure.next_step
        )
    return ChildFailed(
        "child_died",
        f"{child.name} should end with a result, but: {child.describe_death()}",
        next_step="see the daemon's log; the job can be created again",
    )


def file_progress(*paths: Path) -> Callable[[], object]:
    """A progress function: sizes and times of change of some files."""

    def probe() -> object:
        stats = []
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                stats.append((status.st_size, status.st_mtime_ns))
        return stats

    return probe


def _lock(fd: int, directory: Path) -> None:
    deadline = time.monotonic() + LOCK_WAIT_SECONDS
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() > deadline:
                sys.exit(f"another process works in {directory}")
            time.sleep(0.1)


def _module_name() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else "MODULE"
