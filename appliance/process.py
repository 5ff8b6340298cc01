"""Start, watch and stop child processes; no other module starts any (`detached` starts what is no child).

A child gets its own process group and the reading end of a pipe whose writing end the parent alone
holds. When the parent goes, however it goes, the pipe reaches end-of-file and the child kills its whole
group. Output is logged line by line and the last of it kept, so that a death can be told as exit status
plus last words. There is no total time limit: only a child that shows no progress is stopped.

Knows nothing of what the children do.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import MappingProxyType

from appliance.child_output import LINE_LIMIT_BYTES, ChildOutput
from appliance.errors import ChildFailed

logger = logging.getLogger(__name__)

# A program within a child's group.
Program = subprocess.Popen[bytes]
DEATH_FD_VARIABLE = "APPLIANCE_DEATH_FD"
TERMINATE_GRACE_SECONDS = 5.0
STALL_POLL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1  # linux/prctl.h

# Every library that a child may load and that would otherwise try the network. Set before any import.
OFFLINE_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "WANDB_MODE": "disabled",
    "DO_NOT_TRACK": "1",
}


class Child:
    """A running child process, owned by the event loop that started it."""

    def __init__(self, name: str, process: asyncio.subprocess.Process, death_fd: int) -> None:
        self.name = name
        self.pid = process.pid
        self._process = process
        self._death_fd: int | None = death_fd
        self._stopping = False
        self._paused_at: float | None = None
        self._began_at = time.monotonic()
        self._output = ChildOutput(name)
        assert process.stdout is not None
        self._reader = asyncio.create_task(self._output.read(process.stdout), name=name)
        self._kill_group_after_leader()

    @property
    def returncode(self) -> int | None:
        """Exit status, negative signal number, or None while it runs."""
        return self._process.returncode

    async def wait(self) -> int:
        """Wait for the end of the process and of its output; returns the exit status."""
        status = await self._process.wait()
        # Shielded: whoever waits may give up, and the next one still needs the output.
        await asyncio.shield(self._reader)
        if self._death_fd is not None:
            os.close(self._death_fd)
            self._death_fd = None
            if status != 0 and not self._stopping:
                extra = {"child": self.name, "status": status, "output": self._output.text}
                logger.error("child ended badly", extra=extra)
        return status

    def pause(self) -> None:
        """Stop the whole group where it is, unless it ends already. It keeps its memory."""
        if self._paused_at is None and self.returncode is None and not self._stopping:
            self._paused_at = time.monotonic()
            self._signal_group(signal.SIGSTOP)

    def resume(self) -> None:
        """Let a paused group go on."""
        if self._paused_at is not None:
            self._began_at += time.monotonic() - self._paused_at
            self._paused_at = None
            self._signal_group(signal.SIGCONT)

    @property
    def worked_seconds(self) -> float:
        """Time since its start, without that in which it was paused."""
        return (self._paused_at or time.monotonic()) - self._began_at

    async def stop(self) -> None:
        """Ask the group to end, and after a grace period make it."""
        self._stopping = True
        if self.returncode is None:
            self._signal_group(signal.SIGTERM)
            # A stopped process acts on SIGTERM only once it is continued.
            self._signal_group(signal.SIGCONT)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TERMINATE_GRACE_SECONDS):
                    await self._process.wait()
        self._signal_group(signal.SIGKILL)
        await self.wait()

    def describe_death(self) -> str:
        """Exit status and last line, for people."""
        if (status := self.returncode) is not None and status < 0:
            names = {each.value: each.name for each in signal.Signals}
            cause = f"killed by {names.get(-status, f'signal {-status}')}"
        else:
            cause = f"exit status {status}"
        return f"{cause}; last line: {self.last_line}"

    @property
    def last_line(self) -> str:
        """The last line of output that was not empty."""
        return self._output.last_line

    def _kill_group_after_leader(self) -> None:
        """A grandchild would hold the output open, and asyncio's own `wait` waits for that, too."""
        loop = asyncio.get_running_loop()
        try:
            # Readable when the process ends, whoever reaps it (pidfd_open(2)).
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            self._signal_group(signal.SIGKILL)
            return

        def ended() -> None:
            loop.remove_reader(descriptor)
            os.close(descriptor)
            self._signal_group(signal.SIGKILL)

        loop.add_reader(descriptor, ended)

    def _signal_group(self, number: signal.Signals) -> None:
        if self._death_fd is None:
            # The group has been seen to end; its number may belong to somebody else by now.
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, number)


async def start(
    name: str,
    argv: Sequence[str],
    *,
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] = MappingProxyType({}),
) -> Child:
    """Start a child in its own process group, tied to this process's life, with more in its environment."""
    read_end, write_end = os.pipe()
    try:
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            limit=LINE_LIMIT_BYTES,
            start_new_session=True,
            pass_fds=(read_end, *pass_fds),
            env={
                **os.environ,
                **OFFLINE_ENVIRONMENT,
                **environment,
                "PYTHONUNBUFFERED": "1",
                DEATH_FD_VARIABLE: str(read_end),
            },
        )
    except BaseException:
        os.close(write_end)
        raise
    finally:
        os.close(read_end)
    logger.info("child started", extra={"child": name, "pid": process.pid})
    return Child(name, process, write_end)


async def wait_or_stall(
    child: Child,
    *,
    progress: Callable[[], object],
    stall_timeout_seconds: float,
    on_poll: Callable[[], Awaitable[None]] | None = None,
) -> int:
    """Wait for `child`; raise ChildFailed once `progress()` has not changed for the stall timeout.

    Time in which the child was paused does not count. `on_poll` runs about once a second while it lives.
    """
    ended = asyncio.create_task(child.wait())
    seen, seen_at = progress(), child.worked_seconds
    try:
        while True:
            done, _ = await asyncio.wait({ended}, timeout=STALL_POLL_SECONDS)
            if on_poll is not None:
                await on_poll()
            if done:
                return ended.result()
            current = progress()
            if current != seen:
                seen, seen_at = current, child.worked_seconds
            elif child.worked_seconds - seen_at > stall_timeout_seconds:
                raise ChildFailed(
                    "child_stalled",
                    f"{child.name} should report progress every {stall_timeout_seconds:.0f} s; it has not",
                    next_step="see the log of the job; raise stall_timeout_seconds on a slow device",
                )
    finally:
        if not ended.done():
            await child.stop()
            await ended


# --- the child's side ---


def python_child(module: str, *arguments: str) -> list[str]:
    """The argument list that runs one of our modules in a fresh interpreter."""
    return [sys.executable, "-m", module, *arguments]


def start_in_group(argv: Sequence[str], *, pass_fds: Sequence[int]) -> Program:
    """Start a program inside this child's process group; it should begin with `die_with_parent()`.

    It inherits standard error, `pass_fds` and the death pipe.
    """
    variable = os.environ.get(DEATH_FD_VARIABLE)
    death_fds = () if variable is None else (int(variable),)
    return Program(argv, stdin=subprocess.DEVNULL, pass_fds=(*pass_fds, *death_fds))


def die_with_parent() -> None:
    """Tie this process and its group to the parent that started it.

    A thread waits for the pipe's end-of-file and kills the whole group. A stopped process runs no
    threads: the kernel's parent-death signal continues the leader. (SIGKILL would be faster than the thread,
    and leave the group.) The others' parent is the leader. Started by hand there is no pipe.
    """
    variable = os.environ.get(DEATH_FD_VARIABLE)
    if variable is None:
        return
    death_fd = int(variable)
    on_death = signal.SIGCONT if os.getpgrp() == os.getpid() else signal.SIGKILL
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, on_death)
    threading.Thread(target=_kill_group_at_eof, args=(death_fd,), daemon=True).start()


def _kill_group_at_eof(death_fd: int) -> None:
    while os.read(death_fd, 1):
        pass
    os.killpg(0, signal.SIGKILL)
