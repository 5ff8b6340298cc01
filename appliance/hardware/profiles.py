"""Hardware profiles: reads the TOML files, and picks the one for this device.

The only reader of `firmware_profiles/`. Holds facts and defaults, no behaviour.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

import msgspec

from appliance.errors import ConfigurationError
from appliance.hardware import probe
from appliance.records import HardwareProfile


def load(directory: Path, name: str) -> HardwareProfile:
    """The profile called `name`, or for "auto" the one that fits what the probe sees."""
    if name == "auto":
        name = "nvidia" if probe.nvidia_gpus() else "cpu"
    path = directory / f"{name}.toml"
    available = sorted(file.stem for file in directory.glob("*.toml"))
    if name not in available:
        raise ConfigurationError(
            "unknown_profile",
            f"profile should be auto or one of {', '.join(available) or 'none found'}; "
            f"found {name!r} (looked in {directory})",
        )
    try:
        return msgspec.toml.decode(path.read_bytes(), type=HardwareProfile)
    except (OSError, tomllib.TOMLDecodeError, msgspec.MsgspecError) as exc:
        raise ConfigurationError("invalid_profile", f"{path}: {exc}") from exc
