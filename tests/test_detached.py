"""What outlives the process that started it can be watched and stopped."""

from __future__ import annotations

import os
import signal
import sys

from appliance import detached
from tests.daemon_process import group_members, wait_for


def test_detached_process_can_be_watched_and_stopped(tmp_path):
    log = tmp_path / "log"
    pid = detached.start(
        [sys.executable, "-c", "import time; print('up', flush=True); time.sleep(600)"], log
    )
    try:
        wait_for(lambda: log.read_text(), "the process to be up")
        assert detached.is_running(pid)
        detached.stop(pid, 10)
        wait_for(lambda: not detached.is_running(pid), "its end to be seen")
    finally:
        if group_members(pid):
            os.killpg(pid, signal.SIGKILL)
