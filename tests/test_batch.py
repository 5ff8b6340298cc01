"""The directory contract of a batch child, with real processes."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import msgspec
import pytest

from appliance import batch, process
from appliance.batch import Failure
from appliance.child_records import Progress
from appliance.errors import ChildFailed
from appliance.settings import CHECKOUT

CHILD = """
import os, sys
from appliance import batch
from appliance.errors import InvalidInput
def main(directory, reporter):
    {body}
batch.run(main)
"""


def run(directory: Path, body: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    directory.mkdir(exist_ok=True)
    return subprocess.run(
        [sys.executable, "-c", CHILD.format(body=body), *(arguments or (str(directory),))],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        timeout=60,
    )


def test_result_is_written_last_and_whole(tmp_path):
    done = run(tmp_path, "return {'ok': sorted(os.listdir(directory))}")
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "result.json").read_text()) == {"ok": ["heartbeat", "lock"]}


def test_finished_stage_is_not_done_again(tmp_path):
    (tmp_path / "result.json").write_text('"first"')
    done = run(tmp_path, "raise AssertionError('ran again')")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "result.json").read_text() == '"first"'


def test_error_of_ours_is_put_on_disk_and_in_the_last_line(tmp_path):
    done = run(tmp_path, "raise InvalidInput('bad', 'wanted a, found b', param='p', next_step='n')")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "bad: wanted a, found b; n"
    failure = msgspec.json.decode((tmp_path / "error.json").read_bytes(), type=Failure)
    assert failure == Failure(code="bad", message="wanted a, found b", param="p", next_step="n")
    assert not (tmp_path / "result.json").exists()


def test_error_of_an_earlier_run_does_not_outlive_a_success(tmp_path):
    run(tmp_path, "raise InvalidInput('bad', 'm')")
    run(tmp_path, "return 1")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heartbeat", "lock", "result.json"]


def test_no_room_for_the_result_is_told(tmp_path):
    body = (
        "import errno; flush = os.fsync\n"
        "    def full(fd):\n"
        "        os.fsync = flush\n"
        "        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\n"
        "    os.fsync = full"
    )
    done = run(tmp_path, body)
    assert done.returncode == 1
    assert json.loads((tmp_path / "error.json").read_text())["code"] == "out_of_disk"
    assert not (tmp_path / "result.json").exists()


def test_a_failing_disk_is_told(tmp_path):
    done = run(tmp_path, "raise OSError(5, 'Input/output error', '/state/x')")
    assert done.returncode == 1
    failure = json.loads((tmp_path / "error.json").read_text())
    assert failure["code"] == "disk_failed"
    assert "/state/x" in failure["message"]


def test_unexpected_error_leaves_neither_file(tmp_path):
    done = run(tmp_path, "return 1 / 0")
    assert done.returncode == 1
    assert "ZeroDivisionError" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["heartbeat", "lock"]


def test_wrong_arguments_are_told(tmp_path):
    done = run(tmp_path, "return 1", "one", "two")
    assert done.returncode == 1
    assert done.stderr.startswith("usage: ")


def test_second_process_waits_for_the_first_one_and_then_gives_up(tmp_path):
    with (tmp_path / "lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        impatient = "batch.LOCK_WAIT_SECONDS = 0.3\n"
        source = CHILD.format(body="return 1").replace("def main", impatient + "def main")
        done = subprocess.run(
            [sys.executable, "-c", source, str(tmp_path)],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(CHECKOUT)},
        )
    assert done.returncode == 1
    assert done.stderr.strip() == f"another process works in {tmp_path}"
    assert not (tmp_path / "result.json").exists()


def test_reports_of_many_writers_are_whole_lines(tmp_path):
    reporter = batch.Reporter(tmp_path)

    def write(number: int) -> None:
        for index in range(50):
            reporter.report(f"{number}:{index}", "ü" * 500, data={"n": index}, eta_seconds=1.5)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = (tmp_path / "metrics.jsonl").read_bytes().splitlines()
    keys = {msgspec.json.decode(line, type=Progress).key for line in lines}
    assert len(lines) == len(keys) == 200


def test_sign_of_life_changes_the_heartbeat(tmp_path):
    reporter = batch.Reporter(tmp_path)
    probe = batch.file_progress(tmp_path / batch.HEARTBEAT)
    before = probe()
    reporter.alive()
    assert probe() != before


def _failure(directory: Path, source: str) -> ChildFailed:
    async def through() -> ChildFailed:
        child = await process.start("tested", [sys.executable, "-c", source])
        await child.wait()
        return batch.failure_of(directory, child)

    return asyncio.run(through())


def test_failure_is_what_the_child_put_on_disk(tmp_path):
    (tmp_path / "error.json").write_text('{"code": "c", "message": "m", "param": "p"}')
    failure = _failure(tmp_path, "pass")
    assert (failure.code, failure.message, failure.param) == ("c", "m", "p")


@pytest.mark.parametrize(
    ("source", "word"), [("exit(3)", "exit status 3"), ("import os; os.abort()", "SIGABRT")]
)
def test_failure_without_a_word_is_how_the_child_died(tmp_path, source, word):
    failure = _failure(tmp_path, source)
    assert failure.code == "child_died"
    assert word in failure.message
