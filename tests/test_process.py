"""Children start, speak, stall and end; and when the parent is gone, so are they."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from appliance import batch, process
from appliance.child_output import LAST_WORDS_BYTES
from appliance.errors import ChildFailed
from appliance.settings import CHECKOUT
from tests.daemon_process import group_members, state_of, wait_for

GONE_WITHIN_SECONDS = 5.0
FOREVER = "import time; time.sleep(600)"


def script(source: str) -> list[str]:
    return [sys.executable, "-c", source]


def run(source: str, **options: object) -> process.Child:
    """Run a script as a child to its end."""

    async def through() -> process.Child:
        child = await process.start("tested", script(source), **options)
        await child.wait()
        return child

    return asyncio.run(asyncio.wait_for(through(), 30))


# --- start and end ---


def test_last_words_of_a_bad_end_are_logged_and_of_a_wanted_one_are_not(caplog):
    run("print('first'); raise ValueError('the reason')")
    (record,) = [each for each in caplog.records if each.message == "child ended badly"]
    assert "first" in record.output
    assert "Traceback" in record.output
    assert "ValueError: the reason" in record.output
    caplog.clear()

    async def stop() -> None:
        child = await process.start("tested", script(FOREVER))
        await child.stop()

    asyncio.run(stop())
    run("")
    assert "child ended badly" not in [each.message for each in caplog.records]


def test_exit_status_and_last_line_tell_a_death():
    child = run("import sys; print('first'); sys.exit('no room\\n\\n')")
    assert child.returncode == 1
    assert child.describe_death() == "exit status 1; last line: no room"


def test_signal_is_told_by_name():
    child = run("import os; os.kill(os.getpid(), 11)")
    assert child.describe_death() == "killed by SIGSEGV; last line: no output"


def test_signal_without_a_name_is_told_too():
    assert "signal 40;" in run("import os; os.kill(os.getpid(), 40)").describe_death()


def test_offline_variables_are_set_before_the_child_begins():
    child = run("import os, json; print(json.dumps(dict(os.environ)))")
    given = json.loads(child.last_line)
    assert len(process.OFFLINE_ENVIRONMENT) == 7
    assert {name: given[name] for name in process.OFFLINE_ENVIRONMENT} == dict(
        process.OFFLINE_ENVIRONMENT
    )


def test_child_leads_a_group_of_its_own_and_reads_nothing():
    child = run("import os, sys; print(os.getpgrp(), os.getsid(0), repr(sys.stdin.read()))")
    assert child.last_line == f"{child.pid} {child.pid} ''"


def test_missing_program_leaks_no_descriptor():
    def descriptors() -> int:
        return len(list(Path("/proc/self/fd").iterdir()))

    async def fail() -> tuple[int, int]:
        before = descriptors()
        for _ in range(3):
            with pytest.raises(FileNotFoundError):
                await process.start("none", ["/no/such/program"])
        return before, descriptors()

    before, after = asyncio.run(fail())
    assert after <= before + 1


def test_group_ends_with_its_leader_though_a_grandchild_holds_the_output():
    child = run(
        "import subprocess, sys\n"
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print('leader ends')"
    )
    assert child.returncode == 0
    assert child.last_line == "leader ends"
    wait_for(lambda: not group_members(child.pid), "the group to be gone")


# --- last words ---


@pytest.mark.parametrize(
    "source",
    [
        "for n in range(5000): print(n, 'x' * 50)",
        "print('x' * 60000)",
        "print('x' * 10_000_000)",
        "for _ in range(200_000): print()",
        "print('é' * 30000)",
        "import os; os.write(1, bytes(range(256)) * 400 + b'\\n')",
    ],
    ids=["lines", "long line", "endless line", "empty lines", "wide characters", "binary"],
)
def test_last_words_are_bounded(source):
    child = run(source + "\nprint('the end')")
    assert child.last_line == "the end"
    assert len(child._output.text.encode()) <= LAST_WORDS_BYTES
    assert len(child._output._lines) <= LAST_WORDS_BYTES


# --- stop and stall ---


def test_stop_kills_what_ignores_sigterm(monkeypatch):
    monkeypatch.setattr(process, "TERMINATE_GRACE_SECONDS", 0.5)
    ignoring = "import signal, time\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\n"

    async def through() -> int | None:
        child = await process.start("stubborn", script(ignoring + "time.sleep(600)"))
        while child.last_line != "up":
            await asyncio.sleep(0.02)
        await child.stop()
        return child.returncode

    assert asyncio.run(asyncio.wait_for(through(), 30)) == -signal.SIGKILL


def test_stop_lets_a_polite_child_end_by_itself():
    polite = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: sys.exit(7))\nprint('up', flush=True)\ntime.sleep(600)"
    )

    async def through() -> int | None:
        child = await process.start("polite", script(polite))
        while child.last_line != "up":
            await asyncio.sleep(0.02)
        await child.stop()
        await child.stop()
        return child.returncode

    assert asyncio.run(asyncio.wait_for(through(), 30)) == 7


def test_stop_ends_a_stopped_child():
    async def through() -> int | None:
        child = await process.start("stopped", script("print('up', flush=True);" + FOREVER))
        while child.last_line != "up":
            await asyncio.sleep(0.02)
        os.kill(child.pid, signal.SIGSTOP)
        while " T " not in Path(f"/proc/{child.pid}/stat").read_text():
            await asyncio.sleep(0.02)
        await child.stop()
        return child.returncode

    assert asyncio.run(asyncio.wait_for(through(), 30)) == -signal.SIGTERM


def test_child_without_progress_is_stopped_and_told(monkeypatch):
    monkeypatch.setattr(process, "STALL_POLL_SECONDS", 0.1)

    async def through() -> process.Child:
        child = await process.start("idle", script(FOREVER))
        with pytest.raises(ChildFailed) as caught:
            await process.wait_or_stall(child, progress=lambda: 0, stall_timeout_seconds=0.3)
        assert caught.value.code == "child_stalled"
        return child

    child = asyncio.run(asyncio.wait_for(through(), 30))
    assert child.returncode is not None
    wait_for(lambda: not group_members(child.pid), "the group to be gone")


# Says more and more, and has a second process in its group that does nothing.
COUNTING = (
    "import itertools, subprocess, time\nsubprocess.Popen(['sleep', '600'])\n"
    "for n in itertools.count(): print(n, flush=True); time.sleep(0.01)"
)


async def counting() -> process.Child:
    child = await process.start("counting", script(COUNTING))
    while child.last_line == "no output":
        await asyncio.sleep(0.02)
    return child


async def paused(child: process.Child) -> str:
    """Pause; returns the last line once the whole group is stopped and all is read."""
    child.pause()
    while {state_of(pid) for pid in group_members(child.pid)} != {"T"}:
        await asyncio.sleep(0.02)
    await asyncio.sleep(0.2)
    return child.last_line


def test_paused_group_stands_still_and_goes_on():
    async def through() -> None:
        child = await counting()
        said = await paused(child)
        child.pause()
        await asyncio.sleep(0.5)
        assert child.last_line == said
        child.resume()
        while child.last_line == said:
            await asyncio.sleep(0.02)
        assert "T" not in {state_of(pid) for pid in group_members(child.pid)}
        await child.stop()

    asyncio.run(asyncio.wait_for(through(), 30))


def test_paused_child_ends_when_it_is_stopped_and_is_not_paused_again():
    polite = (
        "import signal, sys, time\n"
        "signal.signal(15, lambda *_: (time.sleep(0.5), sys.exit(7)))\n"
        "print('up', flush=True)\ntime.sleep(600)"
    )

    async def through() -> int | None:
        child = await process.start("polite", script(polite))
        while child.last_line != "up":
            await asyncio.sleep(0.02)
        await paused(child)
        stopping = asyncio.create_task(child.stop())
        await asyncio.sleep(0.1)
        child.resume()
        child.pause()
        await stopping
        child.pause()
        return child.returncode

    assert asyncio.run(asyncio.wait_for(through(), 30)) == 7


def test_paused_time_is_no_stall(monkeypatch):
    monkeypatch.setattr(process, "STALL_POLL_SECONDS", 0.05)
    paused_for_seconds = 3.0

    async def through() -> float:
        child = await process.start("idle", script(FOREVER))
        child.pause()
        waiting = asyncio.create_task(
            process.wait_or_stall(child, progress=lambda: 0, stall_timeout_seconds=1.0)
        )
        await asyncio.sleep(paused_for_seconds)
        assert not waiting.done()
        child.resume()
        assert child.worked_seconds < paused_for_seconds
        with pytest.raises(ChildFailed, match="should report progress every 1 s"):
            await waiting
        return child.worked_seconds

    assert asyncio.run(asyncio.wait_for(through(), 30)) > 1.0


def test_progress_pushes_the_stall_timeout_forward(monkeypatch, tmp_path):
    monkeypatch.setattr(process, "STALL_POLL_SECONDS", 0.1)
    beat = tmp_path / "heartbeat"
    source = (
        f"import pathlib, time\nfor _ in range(80):\n"
        f"    pathlib.Path({str(beat)!r}).touch(); time.sleep(0.1)"
    )

    async def through() -> int:
        child = await process.start("busy", script(source))
        progress = batch.file_progress(beat, tmp_path / "not there")
        return await process.wait_or_stall(child, progress=progress, stall_timeout_seconds=5)

    assert asyncio.run(asyncio.wait_for(through(), 60)) == 0


def test_cancelled_wait_ends_the_child():
    async def through() -> int:
        child = await process.start("cancelled", script(FOREVER))
        waiting = asyncio.create_task(
            process.wait_or_stall(child, progress=lambda: 0, stall_timeout_seconds=60)
        )
        await asyncio.sleep(0.2)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        return child.pid

    group = asyncio.run(asyncio.wait_for(through(), 30))
    wait_for(lambda: not group_members(group), "the group to be gone")


def test_failing_poll_ends_the_child():
    async def poll() -> None:
        raise OSError("full")

    async def through() -> int:
        child = await process.start("polled", script(FOREVER))
        with pytest.raises(OSError, match="full"):
            await process.wait_or_stall(
                child, progress=lambda: 0, stall_timeout_seconds=60, on_poll=poll
            )
        return child.pid

    group = asyncio.run(asyncio.wait_for(through(), 30))
    wait_for(lambda: not group_members(group), "the group to be gone")


# --- death with the parent ---

# One grandchild that is tied, and one that knows nothing of it.
CHILD = """
import subprocess, sys, time
from appliance import process
process.die_with_parent()
subprocess.Popen(["sleep", "600"])
process.start_in_group(
    [sys.executable, "-c", "import time; from appliance import process\\n"
     "process.die_with_parent(); print('grandchild up', flush=True); time.sleep(600)"],
    pass_fds=())
time.sleep(600)
"""
PARENT = f"""
import asyncio, sys
from appliance import process
async def main():
    child = await process.start("child", [sys.executable, "-c", {CHILD!r}])
    while child.last_line != "grandchild up":
        await asyncio.sleep(0.02)
    print(child.pid, flush=True)
    await child.wait()
asyncio.run(main())
"""


@pytest.mark.parametrize("stopped", [False, True], ids=["running", "stopped"])
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_whole_group_is_gone_when_the_parent_is(stopped, end):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    with subprocess.Popen(script(PARENT), stdout=subprocess.PIPE, env=environment) as parent:
        assert parent.stdout is not None
        group = int(parent.stdout.readline())
        try:
            assert len(group_members(group)) == 3
            if stopped:
                os.killpg(group, signal.SIGSTOP)
            parent.send_signal(end)
            parent.wait()
            deadline = time.monotonic() + GONE_WITHIN_SECONDS
            while group_members(group) and time.monotonic() < deadline:
                time.sleep(0.02)
            assert group_members(group) == []
        finally:
            if group_members(group):
                os.killpg(group, signal.SIGKILL)
