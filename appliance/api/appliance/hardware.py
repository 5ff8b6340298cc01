"""`/api/v1/hardware`: the device, the profile that it got and why, and what its sensors say now."""

from __future__ import annotations

import asyncio

import msgspec
from litestar import Controller, get

from appliance.hardware.device import Nvml, Tegra
from appliance.hardware.lease import Holding, Ledger
from appliance.hardware.selection import Selection
from appliance.hardware.sensors import Sensors
from appliance.hardware.telemetry import Reading


class ChosenProfile(msgspec.Struct):
    """A hardware profile; `known` says whether it names this device, or was asked for."""

    name: str
    description: str
    reason: str
    known: bool
    thermal_limit_celsius: int | None


class DeviceFacts(msgspec.Struct):
    """What does not change while the daemon runs; `memory_bytes` is the total that models share."""

    family: str
    memory_bytes: int
    machine: str
    cpus: float
    cpu_features: tuple[str, ...]
    host_memory_bytes: int
    nvml: Nvml
    tegra: Tegra | None


class Memory(msgspec.Struct):
    """The device's memory that the appliance's children may take, and who has been granted what of it."""

    capacity_bytes: int
    free_bytes: int
    holdings: list[Holding]


class Hardware(msgspec.Struct):
    """The device, its profile, who holds its memory, and the readings of this moment."""

    profile: ChosenProfile
    device: DeviceFacts
    memory: Memory
    now: list[Reading]


class HardwareController(Controller):
    """The device that the appliance runs on."""

    path = "/api/v1/hardware"
    tags = ("hardware",)

    @get("/", operation_id="getHardware")
    async def get(self, selected: Selection, ledger: Ledger, sensors: Sensors) -> Hardware:
        """Profile, device facts, leases, and telemetry."""
        memory = await asyncio.to_thread(_memory, ledger)
        return Hardware(_profile(selected), _facts(selected), memory, await sensors.now())


def _memory(ledger: Ledger) -> Memory:
    holdings = ledger.holdings()
    held = sum(each.bytes for each in holdings)
    return Memory(ledger.capacity_bytes, ledger.capacity_bytes - held, holdings)


def _profile(selected: Selection) -> ChosenProfile:
    return ChosenProfile(
        name=selected.profile.name,
        description=selected.profile.description,
        reason=selected.reason,
        known=selected.known,
        thermal_limit_celsius=selected.profile.thermal_limit_celsius,
    )


def _facts(selected: Selection) -> DeviceFacts:
    device = selected.device
    return DeviceFacts(
        family=device.family,
        memory_bytes=selected.memory_bytes,
        machine=device.host.machine,
        cpus=device.host.cpus,
        cpu_features=device.host.cpu_features,
        host_memory_bytes=device.host.memory_bytes,
        nvml=device.nvml,
        tegra=device.tegra,
    )
