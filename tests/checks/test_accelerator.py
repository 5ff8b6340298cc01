"""The doctor names the profile, and a GPU that cannot be used is a warning, not silence."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from appliance.checks import accelerator
from appliance.hardware import host, nvml
from appliance.hardware.device import Gpu, Nvml
from appliance.hardware.fit.machine import GIB
from appliance.hardware.probe import ROOT

GPU = Gpu(name="NVIDIA L4", uuid=None, memory_bytes=23034 << 20, compute_capability="8.9")


def test_profile_and_reason_are_named(settings, monkeypatch):
    monkeypatch.setattr(nvml, "read", lambda: Nvml(gpus=(GPU,)))
    finding = asyncio.run(accelerator.check(settings))
    assert (finding.outcome, finding.next_step) == ("ok", None)
    assert finding.found == "profile l4: it is made for NVIDIA L4"


def test_gpu_that_cannot_be_used_is_a_warning(settings, monkeypatch):
    problem = "GPU 0: memory: GPU is lost"
    monkeypatch.setattr(nvml, "read", lambda: Nvml(problems=(problem,)))
    finding = asyncio.run(accelerator.check(settings))
    assert finding.outcome == "warning"
    assert finding.found.startswith(problem)
    assert "profile cpu" in finding.found
    assert finding.next_step


@pytest.mark.parametrize(("left_gib", "outcome"), [(1.01, "ok"), (0.99, "warning")])
def test_device_on_which_nothing_fits_is_a_warning(settings, tmp_path, left_gib, outcome):
    changes = tmp_path / "mine.toml"
    reserve_gib = host.read(ROOT).installed_bytes / GIB - left_gib
    changes.write_text(f"os_reserve_gib = {reserve_gib}")
    poor = msgspec.structs.replace(settings, profile_override_file=changes)
    finding = asyncio.run(accelerator.check(poor))
    assert finding.outcome == outcome
    assert ("too little memory for any model" in finding.found) == (outcome == "warning")
