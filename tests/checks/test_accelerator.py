"""The doctor names the profile, and a GPU that cannot be used is a warning, not silence."""

from __future__ import annotations

import asyncio

from appliance.checks import accelerator
from appliance.hardware import nvml
from appliance.hardware.device import Gpu, Nvml

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
