"""What is left for children on each kind of device."""

from __future__ import annotations

import msgspec
import pytest

from appliance.hardware import profiles
from appliance.hardware.device import Device, Disk, Gpu, Host, Nvml
from appliance.hardware.fit.machine import GIB, machine_of
from appliance.settings import CHECKOUT

PROFILES = profiles.load_all(CHECKOUT / "firmware_profiles")
HOST = Host(
    machine="x86_64",
    cpu_features=("avx2",),
    cpus=8,
    memory_bytes=64 * GIB,
    memory_available_bytes=60 * GIB,
    installed_bytes=64 * GIB,
)


def device(card_bytes: int | None = None, *, gpu: bool = False, **host: object) -> Device:
    card = Gpu(name="g", uuid=None, memory_bytes=card_bytes, compute_capability="8.9")
    return Device(
        host=msgspec.structs.replace(HOST, **host),
        disk=Disk(total_bytes=1, free_bytes=1),
        nvml=Nvml(gpus=(card,) if gpu else ()),
        tegra=None,
    )


def test_cpu_leaves_the_operating_system_its_share():
    found = machine_of(device(), PROFILES["cpu"])
    assert found.device_bytes == found.host_bytes == 62 * GIB
    assert (found.family, found.bfloat16) == ("cpu", False)


def test_control_group_is_the_appliances_own():
    found = machine_of(device(memory_bytes=4 * GIB), PROFILES["cpu"])
    assert found.device_bytes == 3.75 * GIB


@pytest.mark.parametrize(("limit_gib", "left_gib"), [(61, 60.75), (63, 62), (0.2, 0)])
def test_limit_close_to_all_there_is_leaves_the_operating_system_its_share(limit_gib, left_gib):
    found = machine_of(device(memory_bytes=round(limit_gib * GIB)), PROFILES["cpu"])
    assert found.device_bytes == left_gib * GIB


def test_card_with_memory_of_its_own_has_two():
    found = machine_of(device(24 * GIB, gpu=True), PROFILES["rtx-4090"])
    assert found.device_bytes == 23.5 * GIB
    assert found.host_bytes == 62 * GIB
    assert found.bfloat16


def test_reserve_larger_than_the_card_leaves_nothing():
    profile = msgspec.structs.replace(PROFILES["rtx-4090"], os_reserve_gib=25)
    assert machine_of(device(24 * GIB, gpu=True), profile).device_bytes == 0


def test_shared_memory_is_the_hosts():
    found = machine_of(device(None, gpu=True), PROFILES["gb10"])
    assert found.family == "unified"
    assert found.device_bytes == found.host_bytes == 60 * GIB


@pytest.mark.parametrize("feature", ["avx512_bf16", "amx_bf16", "bf16"])
def test_cpu_with_instructions_for_bfloat16_uses_them(feature):
    assert machine_of(device(cpu_features=(feature,)), PROFILES["cpu"]).bfloat16
