"""The memory that the appliance's children may take together on a device; asks nothing."""

from __future__ import annotations

import msgspec

from appliance.compute import BFLOAT16_FEATURES
from appliance.hardware.device import Device, Family
from appliance.hardware.profiles import HardwareProfile

GIB = 1 << 30
# In a control group of its own the appliance shares with nobody but its daemon, which takes 0.1 GiB.
_LIMITED_RESERVE_GIB = 0.25
# What the host keeps for itself beside a GPU with memory of its own: as much as without one (cpu.toml). The
# profile's reserve is then the GPU's, for its driver and a screen.
_HOST_RESERVE_GIB = 2.0


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """`device_bytes` are where models are trained and served, `host_bytes` where they are released.

    They are the same memory unless the GPU has its own.
    """

    family: Family
    device_bytes: int
    host_bytes: int
    bfloat16: bool

    def without(self, size_bytes: int) -> Machine:
        """The same machine when somebody holds so much of the device's memory."""
        shared = self.family != "discrete"
        return msgspec.structs.replace(
            self,
            device_bytes=self.device_bytes - size_bytes,
            host_bytes=self.host_bytes - (size_bytes if shared else 0),
        )


def machine_of(device: Device, profile: HardwareProfile) -> Machine:
    """What is left for children once the operating system has its share."""
    host = device.host
    discrete = device.family == "discrete"
    reserve_gib = _HOST_RESERVE_GIB if discrete else profile.os_reserve_gib
    host_bytes = _left(host.installed_bytes, reserve_gib)
    if host.memory_limited:
        host_bytes = min(host_bytes, _left(host.memory_bytes, _LIMITED_RESERVE_GIB))
    return Machine(
        family=device.family,
        device_bytes=(
            _left(device.memory_bytes, profile.os_reserve_gib) if discrete else host_bytes
        ),
        host_bytes=host_bytes,
        bfloat16=device.family != "cpu" or bool(BFLOAT16_FEATURES & set(host.cpu_features)),
    )


def _left(total_bytes: int, reserve_gib: float) -> int:
    return max(0, total_bytes - round(reserve_gib * GIB))
