"""Memory is held by who uses it, for as long as it lives, whoever looks and however it ends."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from appliance.errors import Busy, InvalidInput, NoMemory, OutOfDisk
from appliance.hardware import lease
from appliance.hardware.lease import Ledger

HOLDER = [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"]
# Takes 60 of 100, says from when to when it had it, and gives it back; all of them at once.
RIVAL = """
import sys, time
from pathlib import Path
from appliance.errors import NoMemory
from appliance.hardware.lease import Ledger
ledger = Ledger(Path(sys.argv[1]), 100)
print("ready", flush=True)
sys.stdin.readline()
won = refused = 0
while won < 20:
    try:
        with ledger.grant(sys.argv[2], "training", 60):
            start = time.monotonic()
            time.sleep(0.002)
            print(start, time.monotonic(), flush=True)
        won += 1
    except NoMemory:
        refused += 1
        time.sleep(0.0005)
print("refused", refused, flush=True)
"""


@pytest.fixture
def ledger(tmp_path):
    return Ledger(tmp_path / "leases", 100)


def test_what_is_granted_is_seen_and_comes_back(ledger):
    with ledger.grant("m", "serving", 60):
        (holding,) = ledger.holdings()
        assert (holding.holder, holding.purpose, holding.bytes) == ("m", "serving", 60)
        assert abs(holding.since - time.time()) < 60
        assert ledger.free_bytes == 40
    assert ledger.holdings() == []
    assert ledger.free_bytes == 100


def test_all_can_be_had_and_not_a_byte_more(ledger):
    with ledger.grant("a", "serving", 60), ledger.grant("b", "training", 40):
        assert ledger.free_bytes == 0
        with pytest.raises(NoMemory) as caught:
            ledger.grant("c", "release", 1)
    assert (caught.value.missing_bytes, caught.value.serving_bytes) == (1, 60)
    assert "a (serving" in caught.value.message
    assert "b (training" in caught.value.message


def test_more_than_there_is_will_never_be_free(ledger):
    with pytest.raises(InvalidInput) as caught:
        ledger.grant("a", "serving", 101)
    assert caught.value.code == "does_not_fit"


def started(held) -> subprocess.Popen[bytes]:
    child = subprocess.Popen(HOLDER, stdout=subprocess.PIPE, pass_fds=(held.descriptor,))
    assert child.stdout.readline() == b"up\n"
    return child


def test_child_holds_it_to_its_end_and_no_longer(ledger):
    with ledger.grant("m", "serving", 60) as held:
        child = started(held)
    try:
        assert ledger.free_bytes == 40
        # Stopped is not ended.
        child.send_signal(signal.SIGSTOP)
        assert ledger.free_bytes == 40
    finally:
        child.kill()
        child.communicate()
    assert ledger.free_bytes == 100


def test_daemon_that_is_started_anew_sees_what_children_of_the_killed_one_hold(tmp_path):
    code = (
        "import os, subprocess, sys\nfrom pathlib import Path\n"
        "from appliance.hardware.lease import Ledger\n"
        "lease = Ledger(Path(sys.argv[1]), 100).grant('m', 'training', 60)\n"
        "child = subprocess.Popen(['sleep', '600'], stdout=-3, pass_fds=(lease.descriptor,))\n"
        "print(child.pid, flush=True)\nos.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "leases")], stdout=subprocess.PIPE, check=False
    )
    assert done.returncode == -signal.SIGKILL
    new = Ledger(tmp_path / "leases", 100)
    assert new.free_bytes == 40
    os.kill(int(done.stdout), signal.SIGKILL)
    deadline = time.monotonic() + 30
    while new.free_bytes != 100:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_rivals_never_both_have_it(tmp_path):
    argv = [sys.executable, "-c", RIVAL, str(tmp_path / "leases")]
    rivals = [
        subprocess.Popen(
            [*argv, str(number)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for number in range(3)
    ]
    for rival in rivals:
        assert rival.stdout.readline() == "ready\n"
    outputs: list[str] = []
    threads = [
        threading.Thread(
            target=lambda r=rival: outputs.append(r.communicate("go\n", timeout=120)[0])
        )
        for rival in rivals
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = [line.split() for output in outputs for line in output.splitlines()]
    held = sorted((float(a), float(b)) for a, b in lines if a != "refused")
    assert len(held) == 60
    assert all(first[1] <= second[0] for first, second in itertools.pairwise(held))
    assert sum(int(count) for word, count in lines if word == "refused") > 0


def test_lease_that_cannot_be_read_is_not_taken_for_none(ledger, tmp_path):
    with ledger.grant("m", "serving", 60):
        (path,) = (tmp_path / "leases").glob("*.lease")
        path.write_bytes(b"{")
        with pytest.raises(Busy, match=path.name):
            ledger.grant("n", "serving", 1)
    assert ledger.free_bytes == 100


def test_lease_that_cannot_be_written_is_none(ledger, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        with pytest.raises(OutOfDisk):
            ledger.grant("m", "serving", 60)
    assert ledger.holdings() == []
    with ledger.grant("m", "serving", 100):
        assert ledger.free_bytes == 0


def test_lease_that_is_granted_after_a_cancellation_is_given_up(ledger, monkeypatch):
    entered, released = threading.Event(), threading.Event()
    granted = []
    own_grant = ledger.grant

    def slow(*arguments):
        entered.set()
        assert released.wait(30)
        granted.append(own_grant(*arguments))
        return granted[0]

    monkeypatch.setattr(ledger, "grant", slow)

    async def cancelled() -> None:
        task = asyncio.create_task(lease.grant(ledger, "m", "serving", 60))
        await asyncio.to_thread(entered.wait, 30)
        task.cancel()
        done, _ = await asyncio.wait({task}, timeout=0.1)
        assert not done
        released.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert granted
        assert ledger.holdings() == []

    asyncio.run(asyncio.wait_for(cancelled(), 30))


def test_roots_files_belong_to_the_directorys_owner(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can make files for others")
    (tmp_path / "leases").mkdir()
    os.chown(tmp_path / "leases", 65534, 65534)
    ledger = Ledger(tmp_path / "leases", 100)
    with ledger.grant("m", "serving", 1):
        owners = {path.stat().st_uid for path in (tmp_path / "leases").iterdir()}
    assert owners == {65534}


def test_nothing_is_left_behind(ledger, tmp_path):
    for _ in range(5):
        with ledger.grant("m", "serving", 60):
            pass
    assert ledger.holdings() == []
    assert [path.name for path in (tmp_path / "leases").iterdir()] == ["ledger.lock"]


@pytest.mark.parametrize("missing", ["all", "the end"])
def test_lease_that_can_be_neither_written_nor_removed_holds_nothing(ledger, monkeypatch, missing):
    def fails(descriptor, data):
        if missing == "all":
            raise OSError(errno.EIO, "Input/output error")
        return write(descriptor, data[:20])

    def stays(_):
        raise OSError(errno.EROFS, "Read-only file system")

    write = os.write
    with monkeypatch.context() as patched:
        patched.setattr(os, "write", fails)
        patched.setattr(Path, "unlink", stays)
        with pytest.raises((OSError, OutOfDisk)):
            ledger.grant("m", "serving", 60)
    assert ledger.holdings() == []
    assert ledger.free_bytes == 100


def test_what_is_no_lease_is_left_alone(ledger, tmp_path):
    leases = tmp_path / "leases"
    os.mkfifo(leases / "0.lease")
    (leases / "1.lease").mkdir()
    (leases / "2.lease").symlink_to("nowhere")
    with ledger.grant("m", "serving", 60):
        assert ledger.free_bytes == 40
    assert len(list(leases.glob("?.lease"))) == 3


def test_ledger_that_root_made_is_the_services(tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can make files for others")
    os.chown(tmp_path, 65534, 65534)
    with Ledger(tmp_path / "leases", 100).grant("warm-up", "training", 60):
        for path in (tmp_path / "leases", *(tmp_path / "leases").iterdir()):
            assert (path.stat().st_uid, path.stat().st_gid) == (65534, 65534)


def test_more_than_there_is_now_leaves_nothing_and_not_less(ledger, tmp_path):
    with ledger.grant("m", "serving", 60):
        smaller = Ledger(tmp_path / "leases", 50)
        assert smaller.free_bytes == 0
        with pytest.raises(NoMemory, match=r"0\.00 GiB are free"):
            smaller.grant("n", "serving", 1)
