"""Which profile this device gets, and why.

By name where one is asked for; else the profile that names the device; else, of the profiles of its
family, the largest class of devices that needs no more memory than was measured. A profile of one device
is never taken for another: its limits are that device's.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from appliance.errors import ConfigurationError
from appliance.hardware import profiles
from appliance.hardware.device import Device
from appliance.hardware.fit.machine import GIB, Machine, machine_of
from appliance.hardware.nvml import VISIBLE
from appliance.hardware.probe import ROOT, probe
from appliance.hardware.profiles import HardwareProfile
from appliance.settings import Settings


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The device, its profile, and why; `memory_bytes` is the total of the memory that models share."""

    device: Device
    profile: HardwareProfile
    reason: str
    known: bool
    memory_bytes: int

    @property
    def machine(self) -> Machine:
        """The memory that children may take."""
        return machine_of(self.device, self.profile)


def select(settings: Settings, root: Path = ROOT) -> Selection:
    """Look at the device and choose; raises ConfigurationError for faulty or unknown profiles."""
    available = profiles.load_all(settings.profile_dir)
    device = _usable(probe(settings.state_dir, root), available, settings.profile)
    chosen, reason, known = choose(device, available, settings.profile)
    profile = profiles.override(chosen, settings.profile_override_file)
    changed = [
        name
        for name in profile.__struct_fields__
        if getattr(profile, name) != getattr(chosen, name)
    ]
    if changed:
        reason += f"; {settings.profile_override_file} changes {', '.join(changed)}"
    return Selection(
        device=device,
        profile=profile,
        reason=reason,
        known=known,
        memory_bytes=device.memory_bytes,
    )


def show_only_the_gpu(device: Device) -> None:
    """From now on this process's children see no GPU but the one that is planned with, if any.

    PyTorch would take whichever CUDA counts first, and llama.cpp all of them. **Not tried on a GPU here.**
    """
    if device.family == "cpu":
        os.environ[VISIBLE] = ""
    elif device.family == "discrete" and device.gpu is not None and device.gpu.uuid is not None:
        os.environ[VISIBLE] = device.gpu.uuid


def _usable(device: Device, available: Mapping[str, HardwareProfile], asked: str) -> Device:
    """The device without its GPUs where none is large enough, or where the operator wants the CPU."""
    if device.gpu is None or device.family != "discrete":
        return device
    on_cpu = asked in available and available[asked].family == "cpu"
    sizes = [each.memory_gib for each in available.values() if each.family == "discrete"]
    least_gib = min(sizes, default=0.0)
    if not on_cpu and device.memory_bytes >= least_gib * GIB:
        return device
    problem = (
        f"{device.gpu.name} has {device.memory_bytes / GIB:.1f} GiB, and the smallest profile needs "
        f"{least_gib:g}: it is not used"
    )
    nvml = msgspec.structs.replace(
        device.nvml, gpus=(), problems=(*device.nvml.problems, *([] if on_cpu else [problem]))
    )
    return msgspec.structs.replace(device, nvml=nvml)


def choose(
    device: Device, available: Mapping[str, HardwareProfile], asked: str
) -> tuple[HardwareProfile, str, bool]:
    """Profile, reason, and whether the device is one that the profile names or that was asked for."""
    if asked != "auto":
        if asked not in available:
            raise ConfigurationError(
                "unknown_profile",
                f"profile should be auto or one of {', '.join(sorted(available))}; found {asked!r}",
                next_step="choose one of these, or write it; docs/profiles.md says how",
            )
        if available[asked].family != device.family:
            raise ConfigurationError(
                "profile_of_another_family",
                f"profile should be of a {device.family} device, as this one is; {asked} is of a "
                f"{available[asked].family} one",
                next_step="choose auto, or another; `appliance profile` shows what was found",
            )
        return available[asked], "it was asked for by name", True
    fitting = [
        profile
        for profile in available.values()
        if profile.family == device.family and profile.memory_gib * GIB <= device.memory_bytes
    ]
    called = _called(device)
    named = [profile for profile in fitting if _names(profile, device)]
    if named:
        return _largest(named), f"it is made for {called}", True
    classes = [profile for profile in fitting if not (profile.gpu_names or profile.modules)]
    if device.family == "cpu" and classes:
        return _largest(classes), "there is no GPU that can be used", True
    if classes:
        return (
            _largest(classes),
            f"no profile that fits names {called}; of its family, this is the largest class that needs "
            f"no more than the {device.memory_bytes / GIB:.1f} GiB measured",
            False,
        )
    raise ConfigurationError(
        "no_profile",
        f"a {device.family} profile should need no more than the "
        f"{device.memory_bytes / GIB:.1f} GiB of {called}; none does",
        next_step="choose one with --profile, or write one",
    )


def _called(device: Device) -> str:
    if device.tegra is not None:
        return f"{device.tegra.model} ({device.tegra.module or device.tegra.chip})"
    return device.gpu.name if device.gpu else "this CPU"


def _names(profile: HardwareProfile, device: Device) -> bool:
    if device.tegra is not None:
        return device.tegra.module in profile.modules
    name = device.gpu.name if device.gpu else ""
    return any(fnmatchcase(name, pattern) for pattern in profile.gpu_names)


def _largest(candidates: Iterable[HardwareProfile]) -> HardwareProfile:
    return max(candidates, key=lambda profile: profile.memory_gib)
