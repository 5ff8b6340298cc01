"""The first requests come from several threads at once, and the process lives on."""

from __future__ import annotations

import os
import subprocess
import sys

from appliance.settings import CHECKOUT

# Each thread is the first to read a job, as far as it knows; switching often makes them meet.
FIRST_READS = """
import sys, threading
from pathlib import Path
from appliance.store.store import Store
from tests.store.conftest import make_job
store = Store(Path(sys.argv[1]))
job = make_job()
store.jobs.add(job, "created")
barrier = threading.Barrier(8)
sys.setswitchinterval(1e-6)
def read():
    barrier.wait()
    assert store.jobs.get(job.id) == job
    assert len(store.jobs.events(job.id, after=None, limit=9)[0]) == 1
threads = [threading.Thread(target=read) for _ in range(8)]
for thread in threads: thread.start()
for thread in threads: thread.join()
store.close()
"""


def test_first_reads_of_many_threads_do_not_crash(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(CHECKOUT)}
    for number in range(4):
        command = [sys.executable, "-c", FIRST_READS, str(tmp_path / str(number))]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        assert done.returncode == 0, (done.returncode, done.stderr)
