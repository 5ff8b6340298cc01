"""Which profile this device gets, and why.

By name where one is asked for; else the profile that names the device; else, of the profiles of its
family, the largest class of devices that needs no more memory than was measured. A profile of one device
is never taken for another: its limits are that device's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path

import msgspec

from appliance.errors import ConfigurationError
from appliance.hardware import profiles
from appliance.hardware.device import Device
from appliance.hardware.probe import ROOT, probe
from appliance.hardware.profiles import HardwareProfile
from appliance.settings import Settings

GIB = 1 << 30


class Selection(msgspec.Struct, frozen=True, kw_only=True):
    """The device, its profile, and why; `memory_bytes` is what a model has to fit into."""

    device: Device
    profile: HardwareProfile
    reason: str
    known: bool
    memory_bytes: int


def select(settings: Settings, root: Path = ROOT) -> Selection:
    """Look at the device and choose; raises ConfigurationError for faulty or unknown profiles."""
    device = probe(settings.state_dir, root)
    available = profiles.load_all(settings.profile_dir)
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
