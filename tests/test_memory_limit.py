"""At the planner's own edge: a job that is admitted under a memory limit lives, one step beyond is refused.

The daemon and all of its children run in a control group whose limit the kernel enforces.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.compute import BFLOAT16_FEATURES
from appliance.hardware import host, stored_base
from appliance.hardware.fit import needs
from appliance.hardware.fit.machine import Machine
from tests.children import starter_gguf
from tests.daemon_process import RealDaemon, ok, wait_for
from tests.hardware.fit.test_planner import CHOSEN

__all__ = ["starter_gguf"]

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.llama, pytest.mark.timeout(900)]

MIB = 1 << 20
PAGE_BYTES = 4096
JOB_DEADLINE_SECONDS = 600.0
BASE = "starter"
RESERVE_BYTES = 256 * MIB
MICRO_BATCH, LONGEST_TOKENS, ROWS = 4, 384, 96


class LimitedGroup:
    """A memory control group of version 1 or 2 below this process's own."""

    def __init__(self) -> None:
        self.path, self._limit = self._make()

    def _make(self) -> tuple[Path, str]:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
        groups = {line.split(":")[1]: line.split(":", 2)[2] for line in lines}
        if "memory" in groups:
            own, limit = Path(f"/sys/fs/cgroup/memory{groups['memory']}"), "memory.limit_in_bytes"
        else:
            own, limit = Path(f"/sys/fs/cgroup{groups['']}"), "memory.max"
        path = own / f"appliance-test-{os.getpid()}"
        path.mkdir()
        if not (path / limit).exists():
            path.rmdir()
            raise OSError(f"{own} gives its children no {limit}")
        return path, limit

    def limit(self, size_bytes: int) -> None:
        """To the next whole page, which is what the kernel counts."""
        pages = -(-size_bytes // PAGE_BYTES)
        (self.path / self._limit).write_text(str(pages * PAGE_BYTES))

    def kills(self) -> int:
        """How often the kernel has killed for want of memory."""
        for name in ("memory.oom_control", "memory.events"):
            if (self.path / name).exists():
                lines = (self.path / name).read_text().splitlines()
                return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))
        raise AssertionError("the group should count kills")

    def remove(self) -> None:
        """When the last process in it has ended; children of a killed daemon take some seconds."""
        wait_for(lambda: not (self.path / "cgroup.procs").read_text(), "the group to be empty")
        self.path.rmdir()


@pytest.fixture
def group() -> Iterator[LimitedGroup]:
    try:
        made = LimitedGroup()
    except OSError as exc:
        pytest.skip(f"no memory control group can be made here: {exc}")
    yield made
    made.remove()


@pytest.fixture
def daemon(group: LimitedGroup, starter_gguf: Path, tmp_path: Path) -> Iterator[RealDaemon]:
    running = RealDaemon(tmp_path / "state")
    running.import_base(starter_gguf, BASE)
    # The shell puts itself into the group and becomes the daemon.
    enter = f'echo $$ > {group.path}/cgroup.procs && exec "$@"'
    running.prefix = ("sh", "-c", enter, "sh")
    yield running
    running.close()


def test_admitted_at_the_edge_it_lives_and_beyond_it_is_refused(
    daemon: RealDaemon, group: LimitedGroup
) -> None:
    content = rows()
    needed = needed_bytes(daemon, len(content))
    group.limit(needed + RESERVE_BYTES - MIB)
    daemon.start()
    refused = create(daemon, content)
    assert refused.status_code == 400, refused.text
    assert refused.json()["error"]["code"] == "does_not_fit"
    daemon.stop()

    group.limit(needed + RESERVE_BYTES)
    daemon.start()
    job = ok(create(daemon, content))
    assert job["appliance"]["plan"]["training_bytes"] == needed
    done = ended(daemon, job["id"])
    assert done["status"] == "succeeded", done["error"]
    assert group.kills() == 0


def ended(daemon: RealDaemon, job_id: str) -> Any:
    deadline = time.monotonic() + JOB_DEADLINE_SECONDS
    while (job := daemon.job(job_id))["status"] not in ("succeeded", "failed"):
        assert time.monotonic() < deadline, job
        time.sleep(1)
    return job


def needed_bytes(daemon: RealDaemon, data_bytes: int) -> int:
    """What the planner says of this job on this machine."""
    features = set(host.read(Path("/")).cpu_features)
    machine = Machine(
        family="cpu", device_bytes=0, host_bytes=0, bfloat16=bool(BFLOAT16_FEATURES & features)
    )
    base = stored_base.read(daemon.state_dir / "base_models" / BASE / "hf")
    assert base is not None
    data = needs.Data(longest_row_tokens=LONGEST_TOKENS, bytes=data_bytes)
    chosen = msgspec.structs.replace(
        CHOSEN,
        per_device_train_batch_size=MICRO_BATCH,
        gradient_accumulation_steps=1,
        max_length=LONGEST_TOKENS,
    )
    return needs.training_bytes(base, "qlora", chosen, data, machine)


def create(daemon: RealDaemon, content: bytes) -> Any:
    body = {
        "model": BASE,
        "training_file": daemon.upload(content)["id"],
        "method": {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 1}}},
        "appliance": {
            "technique": "qlora",
            "quantizations": ["Q4_K_M"],
            "advanced": {
                "per_device_train_batch_size": MICRO_BATCH,
                "gradient_accumulation_steps": 1,
                "max_length": LONGEST_TOKENS,
            },
        },
    }
    return daemon.http.post("/v1/fine_tuning/jobs", json=body)


def rows() -> bytes:
    """Rows of all lengths, the longest as long as is allowed, in micro-batches with the longest first."""
    draw = random.Random(2)
    words = [LONGEST_TOKENS - 40] * MICRO_BATCH
    words += [draw.randint(20, LONGEST_TOKENS - 40) for _ in range(ROWS - MICRO_BATCH)]
    lines = (
        {
            "messages": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "a" + " a" * count},
            ]
        }
        for count in words
    )
    return "".join(json.dumps(line) + "\n" for line in lines).encode()
