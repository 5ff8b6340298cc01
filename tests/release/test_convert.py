from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from appliance import process

# Runs a script through the wrapper, the way the release child does.
CHILD = (
    "import sys; from appliance import process; process.die_with_parent(); "
    "argv = process.python_child('appliance.release.convert', *sys.argv[1:]); "
    "sys.exit(process.run_in_group(argv, on_line=print))"
)


def wait_for(condition: Callable[[], object], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_script_runs_with_its_neighbours_arguments_and_exit_status(tmp_path: Path) -> None:
    (tmp_path / "neighbour.py").write_text("WORD = 'imported'")
    script = tmp_path / "script.py"
    script.write_text("import sys, neighbour\nprint(neighbour.WORD, *sys.argv[1:])\nsys.exit(3)")
    lines: list[str] = []
    argv = process.python_child("appliance.release.convert", str(script), "--flag", "a b")
    assert process.run_in_group(argv, on_line=lines.append) == 3
    assert lines == ["imported --flag a b"]


def test_a_redrawn_progress_bar_comes_line_by_line() -> None:
    lines: list[str] = []
    argv = [sys.executable, "-c", r"print('1%\r2%\r3%')"]
    assert process.run_in_group(argv, on_line=lines.append) == 0
    assert lines == ["1%", "2%", "3%"]


def start_sleeper(tmp_path: Path) -> tuple[subprocess.Popen[bytes], int, int]:
    """A child that runs a sleeping script; also the script's pid and the death pipe's writing end."""
    script, pid_file = tmp_path / "script.py", tmp_path / "pid"
    script.write_text(
        f"import os, pathlib, time\n"
        f"part = pathlib.Path({str(pid_file)!r} + '.part')\n"
        f"part.write_text(str(os.getpid()))\n"
        f"part.rename({str(pid_file)!r})\n"
        f"time.sleep(600)"
    )
    read_end, write_end = os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(script)],
        pass_fds=(read_end,),
        env={**os.environ, process.DEATH_FD_VARIABLE: str(read_end)},
        start_new_session=True,
    )
    os.close(read_end)
    wait_for(pid_file.exists)
    return child, int(pid_file.read_text()), write_end


def test_script_dies_with_the_child_that_runs_it(tmp_path: Path) -> None:
    child, script_pid, write_end = start_sleeper(tmp_path)
    assert is_running(script_pid)
    child.send_signal(signal.SIGKILL)
    child.wait()
    wait_for(lambda: not is_running(script_pid))
    os.close(write_end)


def test_script_dies_when_the_daemon_does(tmp_path: Path) -> None:
    child, script_pid, write_end = start_sleeper(tmp_path)
    os.close(write_end)
    assert child.wait() == -signal.SIGKILL
    wait_for(lambda: not is_running(script_pid))


def test_script_ends_a_stopped_child_too_when_the_daemon_dies(tmp_path: Path) -> None:
    child, script_pid, write_end = start_sleeper(tmp_path)
    child.send_signal(signal.SIGSTOP)
    os.close(write_end)
    assert child.wait(timeout=60) == -signal.SIGKILL
    wait_for(lambda: not is_running(script_pid))
