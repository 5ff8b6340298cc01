"""A profile asked for by name wins; a device that fits none is refused with what to do."""

from __future__ import annotations

import pytest

from appliance.errors import ConfigurationError
from appliance.hardware import profiles, selection
from appliance.hardware.device import Device, Disk, Gpu, Host, Nvml
from appliance.settings import CHECKOUT

AVAILABLE = profiles.load_all(CHECKOUT / "firmware_profiles")
GIB = 1 << 30


def device(*gpus: Gpu) -> Device:
    host = Host(
        machine="x86_64",
        cpu_features=(),
        cpus=2,
        memory_bytes=16 * GIB,
        memory_available_bytes=8 * GIB,
        memory_limited=False,
    )
    return Device(
        host=host, disk=Disk(total_bytes=1, free_bytes=1), nvml=Nvml(gpus=gpus), tegra=None
    )


def gpu(gib: float | None, name: str = "NVIDIA Unheard Of") -> Gpu:
    memory = None if gib is None else int(gib * GIB)
    return Gpu(name=name, uuid=None, memory_bytes=memory, compute_capability=None)


def test_profile_asked_for_by_name_wins():
    profile, reason, known = selection.choose(device(), AVAILABLE, "h200")
    assert (profile.name, known) == ("h200", True)
    assert "asked for" in reason


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="rtx-4090") as caught:
        selection.choose(device(), AVAILABLE, "gpu9000")
    assert caught.value.code == "unknown_profile"


@pytest.mark.parametrize(
    ("gib", "expected"),
    [(4, "gpu"), (8, "gpu-8gb"), (20, "gpu-16gb"), (47, "a100-40gb"), (1000, "h200")],
)
def test_unknown_gpu_gets_the_largest_profile_that_needs_no_more(gib, expected):
    profile, reason, known = selection.choose(device(gpu(gib)), AVAILABLE, "auto")
    assert (profile.name, known) == (expected, False)
    assert "NVIDIA Unheard Of" in reason


def test_unknown_gpu_without_memory_of_its_own_goes_by_the_hosts():
    profile, _, known = selection.choose(device(gpu(None)), AVAILABLE, "auto")
    assert (profile.name, known) == ("orin-nx-16gb", False)


def test_gpu_too_small_for_every_profile_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        selection.choose(device(gpu(1)), AVAILABLE, "auto")
    assert caught.value.code == "no_profile"
    assert "1.0 GiB" in caught.value.message
    assert "--profile" in (caught.value.next_step or "")
