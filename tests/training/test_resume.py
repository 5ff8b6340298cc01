"""A run that is killed and goes on must end exactly where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from appliance import process
from tests.children import reported, run_child

pytestmark = [pytest.mark.torch, pytest.mark.slow]

Spec = Callable[..., dict[str, Any]]
MODULE = "appliance.training"
STEPS_PER_EPOCH = 13
KEPT = 2


@pytest.mark.timeout(900)  # four starts of a child that imports torch
def test_killed_runs_end_bit_equal_to_an_undisturbed_one(spec: Spec, tmp_path: Path) -> None:
    undisturbed, killed = tmp_path / "undisturbed", tmp_path / "killed"
    done = run_child(MODULE, undisturbed, spec(num_train_epochs=2))
    assert done.returncode == 0, done.stderr

    start(killed, spec(num_train_epochs=2, checkpoint_seconds=0.0))
    newest = kill_after_step(killed, 5)
    assert newest % STEPS_PER_EPOCH != 0
    # One too many when the kill came between a checkpoint's rename and the removal of the oldest.
    assert len(checkpoints(killed)) in (KEPT, KEPT + 1)

    # The second time the newest checkpoint is torn as well.
    newest = kill_after_step(killed, STEPS_PER_EPOCH + 3)
    weights = killed / "checkpoints" / f"checkpoint-{newest}" / "adapter_model.safetensors"
    os.truncate(weights, weights.stat().st_size // 2)
    done = run_child(MODULE, killed, spec(num_train_epochs=2, checkpoint_seconds=0.0))
    assert done.returncode == 0, done.stderr

    keys = [line["key"] for line in reported(killed)]
    assert f"damaged:checkpoint-{newest}" in keys
    assert sum(key.startswith("resume:") for key in keys) == 2
    assert checkpoints(killed) == [25, 26]
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (killed / "adapter" / name).read_bytes() == (
            undisturbed / "adapter" / name
        ).read_bytes()
    assert losses(killed) == losses(undisturbed)
    assert results(killed) == results(undisturbed)


def start(job: Path, spec: dict[str, Any]) -> None:
    job.mkdir()
    (job / "spec.json").write_text(json.dumps(spec))


def kill_after_step(job: Path, step: int) -> int:
    """Run the child, kill it once it has reported `step`; returns its newest checkpoint's step."""
    child = subprocess.Popen(
        process.python_child(MODULE, str(job)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, **process.OFFLINE_ENVIRONMENT},
        start_new_session=True,
    )
    while not any(line["key"] == f"step:{step}" for line in whole_lines(job)):
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    assert child.wait() == -signal.SIGKILL
    assert not (job / "result.json").exists()
    return checkpoints(job)[-1]


def whole_lines(job: Path) -> list[dict[str, Any]]:
    return reported(job) if (job / "metrics.jsonl").exists() else []


def checkpoints(job: Path) -> list[int]:
    names = [path.name for path in (job / "checkpoints").iterdir() if path.name[0] != "."]
    return sorted(int(name.removeprefix("checkpoint-")) for name in names)


def losses(job: Path) -> dict[str, float]:
    """By key; what is reported again after a kill replaces what was reported before it."""
    data = {line["key"]: line["data"] for line in reported(job) if line["data"]}
    return {key: d.get("train_loss", d.get("valid_loss")) for key, d in data.items()}


def results(job: Path) -> dict[str, Any]:
    fields = json.loads((job / "result.json").read_bytes())
    return {name: value for name, value in fields.items() if name != "seconds"}
