"""What the box says of its device, with a fake GPU behind the real NVML binding."""

from __future__ import annotations

import pytest

from tests.api.test_health import metrics
from tests.daemon_process import ok
from tests.hardware.test_telemetry import GPU


@pytest.fixture
def hot_and_silent(set_gpus, daemon_with):
    """A daemon with two GPUs, of which the second tells its temperature alone."""
    silent = {name: GPU[name] for name in ("name", "memory_total", "compute_capability")}
    set_gpus({**GPU, "throttle_reasons": 0x20}, {**silent, "temperature": 41})
    return daemon_with()


def test_device_its_profile_and_its_readings_are_shown(hot_and_silent):
    shown = ok(hot_and_silent.http.get("/api/v1/hardware"))
    assert set(shown) == {"profile", "device", "memory", "now"}
    # What the profile reserves is not granted.
    assert shown["memory"]["capacity_bytes"] == GPU["memory_total"] - (512 << 20)
    assert shown["memory"]["free_bytes"] == shown["memory"]["capacity_bytes"]
    assert shown["memory"]["holdings"] == []
    assert shown["profile"]["name"] == "l4"
    assert shown["profile"]["description"]
    assert shown["profile"]["known"] is True
    assert "NVIDIA L4" in shown["profile"]["reason"]
    assert shown["profile"]["thermal_limit_celsius"] == 86
    assert shown["device"]["family"] == "discrete"
    assert shown["device"]["memory_bytes"] == GPU["memory_total"]
    assert shown["device"]["nvml"]["gpus"][0]["name"] == "NVIDIA L4"
    first, second = shown["now"]
    assert (first["device"], first["power_watts"], first["throttled_by"]) == (
        "gpu0",
        68.5,
        ["heat"],
    )
    assert (second["device"], second["power_watts"], second["throttled_by"]) == ("gpu1", None, None)


def test_readings_are_those_of_now(hot_and_silent, set_gpus):
    set_gpus({**GPU, "temperature": 42})
    (reading,) = ok(hot_and_silent.http.get("/api/v1/hardware"))["now"]
    assert reading["temperature_celsius"] == 42.0


def test_gauges_are_what_the_device_tells_and_nothing_else(hot_and_silent, set_gpus):
    def gauges():
        found = metrics(hot_and_silent)
        return {name: found[name] for name in found if name.startswith("appliance_gpu_")}

    assert gauges() == {
        'appliance_gpu_utilization_ratio{device="gpu0"}': 0.97,
        'appliance_gpu_memory_used_bytes{device="gpu0"}': 3 << 30,
        'appliance_gpu_temperature_celsius{device="gpu0"}': 71.0,
        'appliance_gpu_temperature_celsius{device="gpu1"}': 41.0,
        'appliance_gpu_power_watts{device="gpu0"}': 68.5,
        'appliance_gpu_sm_clock_hertz{device="gpu0"}': 1.59e9,
        'appliance_gpu_throttled{device="gpu0"}': 1.0,
    }
    set_gpus(GPU)
    assert gauges()['appliance_gpu_throttled{device="gpu0"}'] == 0.0
    assert len(gauges()) == 6
    set_gpus({"temperature": "!15", "name": "NVIDIA L4"})
    assert gauges() == {}


def test_device_without_sensors_shows_none(shared_daemon):
    assert ok(shared_daemon.http.get("/api/v1/hardware"))["now"] == []
    assert "appliance_gpu_" not in shared_daemon.http.get("/metrics").text
