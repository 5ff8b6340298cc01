"""A profile asked for by name wins; a device that fits none is refused with what to do."""

from __future__ import annotations

import os

import msgspec
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
        installed_bytes=16 * GIB,
    )
    return Device(
        host=host, disk=Disk(total_bytes=1, free_bytes=1), nvml=Nvml(gpus=gpus), tegra=None
    )


def gpu(gib: float | None, name: str = "NVIDIA Unheard Of") -> Gpu:
    memory = None if gib is None else int(gib * GIB)
    return Gpu(name=name, uuid=None, memory_bytes=memory, compute_capability=None)


def test_profile_asked_for_by_name_wins():
    profile, reason, known = selection.choose(device(gpu(80)), AVAILABLE, "h200")
    assert (profile.name, known) == ("h200", True)
    assert "asked for" in reason


def test_unknown_name_is_refused_with_the_known_ones():
    with pytest.raises(ConfigurationError, match="rtx-4090") as caught:
        selection.choose(device(), AVAILABLE, "gpu9000")
    assert caught.value.code == "unknown_profile"


@pytest.mark.parametrize(
    ("gib", "expected"),
    [(4, "gpu"), (8, "gpu-8gb"), (20, "gpu-16gb"), (47, "gpu-40gb"), (1000, "gpu-80gb")],
)
def test_unknown_gpu_gets_the_largest_profile_that_needs_no_more(gib, expected):
    profile, reason, known = selection.choose(device(gpu(gib)), AVAILABLE, "auto")
    assert (profile.name, known) == (expected, False)
    assert "NVIDIA Unheard Of" in reason


def test_unknown_gpu_without_memory_of_its_own_goes_by_the_hosts():
    profile, _, known = selection.choose(device(gpu(None)), AVAILABLE, "auto")
    assert (profile.name, known) == ("unified-16gb", False)


def test_device_named_by_a_profile_that_wants_more_memory_is_told_so():
    named = gpu(8, "NVIDIA GeForce RTX 3060")
    profile, reason, known = selection.choose(device(named), AVAILABLE, "auto")
    assert (profile.name, known) == ("gpu-8gb", False)
    assert reason.startswith("no profile that fits names NVIDIA GeForce RTX 3060")


@pytest.mark.parametrize("family", ["discrete", "unified", "cpu"])
def test_limits_of_one_device_are_never_anothers(family):
    classes = [
        each
        for each in AVAILABLE.values()
        if each.family == family and not (each.gpu_names or each.modules)
    ]
    assert classes
    assert all(each.thermal_limit_celsius is None for each in classes)


@pytest.mark.parametrize(("asked", "gpus"), [("h200", ()), ("cpu", (24,)), ("gb10", (24,))])
def test_profile_of_another_family_is_refused(asked, gpus):
    with pytest.raises(ConfigurationError) as caught:
        selection.choose(device(*map(gpu, gpus)), AVAILABLE, asked)
    assert caught.value.code == "profile_of_another_family"


@pytest.mark.parametrize(
    ("asked", "gib", "family", "problems"),
    [("auto", 2, "cpu", 1), ("auto", 24, "discrete", 0), ("cpu", 24, "cpu", 0)],
)
def test_gpu_that_is_too_small_or_not_wanted_is_not_used(
    settings, monkeypatch, asked, gib, family, problems
):
    card = msgspec.structs.replace(gpu(gib, "NVIDIA GeForce GT 1030"), uuid="GPU-1")
    monkeypatch.setattr(selection, "probe", lambda *_: device(card))
    found = selection.select(msgspec.structs.replace(settings, profile=asked))
    assert (found.device.family, found.profile.family) == (family, family)
    assert found.machine.device_bytes == found.device.memory_bytes - round(
        found.profile.os_reserve_gib * GIB
    )
    assert len(found.device.nvml.problems) == problems
    assert all("GT 1030 has 2.0 GiB" in each for each in found.device.nvml.problems)
    selection.show_only_the_gpu(found.device)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ("GPU-1" if family == "discrete" else "")


def test_gpu_too_small_for_every_profile_is_refused():
    with pytest.raises(ConfigurationError) as caught:
        selection.choose(device(gpu(1)), AVAILABLE, "auto")
    assert caught.value.code == "no_profile"
    assert "1.0 GiB" in caught.value.message
    assert "--profile" in (caught.value.next_step or "")
