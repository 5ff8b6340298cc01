"""A full disk: refused with a word, nothing half stored, and all goes on once there is room."""

from __future__ import annotations

import errno
import os
import subprocess

import pytest

from tests.daemon_process import DaemonProcess, add_base, error_of, ok, wait_for

SIZE_BYTES = 4 << 20


@pytest.fixture
def small_disk(tmp_path):
    """A mounted file system of a few MiB."""
    directory = tmp_path / "small"
    directory.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(directory)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    yield directory
    subprocess.run(["umount", "-l", str(directory)], check=True)


@pytest.fixture
def daemon(small_disk):
    state_dir = small_disk / "state"
    add_base(state_dir)
    running = DaemonProcess(state_dir)
    running.log = small_disk.with_name("daemon.log")
    yield running.start()
    running.close()


def fill(directory) -> None:
    with (directory / "ballast").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 10, 1):
            try:
                while file.write(b"x" * size):
                    pass
            except OSError as exc:
                assert exc.errno == errno.ENOSPC


@pytest.mark.slow
def test_full_disk_loses_nothing_and_everything_goes_on(daemon, small_disk):
    kept = daemon.upload(b"kept" * 1000, purpose="user_data")
    running = daemon.create_job("long")
    daemon.wait_for_event(running["id"], "Step 3/")
    fill(small_disk)
    for size in (200_000, 2 << 20):  # The first is held in memory until it is kept.
        form = {"files": {"file": ("f", os.urandom(size))}, "data": {"purpose": "user_data"}}
        refused = error_of(daemon.http.post("/v1/files", **form), 507)
        assert (refused["code"], refused["type"]) == ("out_of_disk", "server_error")
    assert [file["id"] for file in ok(daemon.http.get("/v1/files"))["data"]].count(kept["id"]) == 1
    assert daemon.http.get("/readyz").status_code == 503
    assert daemon.http.get("/healthz").status_code == 200
    wait_for(lambda: "tries again" in daemon.log_tail(), "the queue to notice", why=daemon.log_tail)

    (small_disk / "ballast").unlink()
    assert daemon.wait_for_job(running["id"])["status"] in ("succeeded", "failed")
    assert daemon.wait_for_job(daemon.create_job()["id"])["status"] == "succeeded"
    assert daemon.http.get(f"/v1/files/{kept['id']}/content").content == b"kept" * 1000
    incoming = daemon.state_dir / "blobs" / "incoming"
    assert list(incoming.iterdir()) == []


@pytest.mark.slow
def test_daemon_that_cannot_start_on_a_full_disk_says_so_and_starts_once_there_is_room(
    daemon, small_disk
):
    kept = daemon.upload(b"kept", purpose="user_data")
    assert daemon.stop() == 0
    fill(small_disk)
    with pytest.raises(AssertionError, match=r"out_of_disk|No space left"):
        daemon.start()
    assert "backup" not in daemon.log_tail()
    (small_disk / "ballast").unlink()
    daemon.start()
    assert ok(daemon.http.get("/v1/files"))["data"] == [kept]
