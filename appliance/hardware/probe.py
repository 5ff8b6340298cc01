"""What this device is: asks the kernel and NVML, never torch.cuda.

torch.cuda would hold a device context for the life of the daemon.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from appliance.hardware import host, nvml, tegra
from appliance.hardware.device import Device, Disk

ROOT = Path("/")


def probe(state_dir: Path, root: Path = ROOT) -> Device:
    """Look at the device; /proc, /sys and /etc are read below `root`, so that a recorded one can be replayed.

    Raises ConfigurationError if /proc/meminfo cannot be read.
    """
    return Device(
        host=host.read(root),
        disk=_disk(state_dir),
        nvml=nvml.read(),
        tegra=tegra.read(root),
    )


def _disk(state_dir: Path) -> Disk:
    """The file system that `state_dir` is on, or will be on."""
    existing = next(each for each in (state_dir, *state_dir.parents) if each.exists())
    usage = shutil.disk_usage(existing)
    return Disk(total_bytes=usage.total, free_bytes=usage.free)
