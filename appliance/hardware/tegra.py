"""Which Jetson or Thor this is, from the device tree and NVIDIA's release file.

NVML is no help there: JetPack 5 has none, and later ones answer little.
"""

from __future__ import annotations

import re
from pathlib import Path

from appliance.hardware.device import Tegra
from appliance.hardware.files import text

_RELEASE = re.compile(r"#\s*R(\d+)\s*\(release\),\s*REVISION:\s*([\d.]+)")
_MODULE = re.compile(r"nvidia,(?:.*\+)?(p\d{4}-\d{4})")
_CHIP = re.compile(r"nvidia,(tegra\d+)")
# Newest first: L4T release -> JetPack release (NVIDIA's release pages, by way of rbonghi/jetson_stats).
_JETPACKS = (
    ("39.2.0", "7.2"),
    ("38.4.0", "7.1"),
    ("38.2", "7.0"),
    ("36.5.0", "6.2.2"),
    ("36.4.7", "6.2.1"),
    ("36.4.4", "6.2.1"),
    ("36.4.3", "6.2"),
    ("36.", "6"),
    ("35.", "5"),
)


def read(root: Path) -> Tegra | None:
    """The board, or None where there is none; reads below `root`."""
    compatible = _strings(root / "proc/device-tree/compatible")
    chip = _first(_CHIP, compatible)
    if chip is None:
        return None
    l4t = _l4t(root / "etc/nv_tegra_release")
    return Tegra(
        model=next(iter(_strings(root / "proc/device-tree/model")), "unknown"),
        chip=chip,
        module=_first(_MODULE, compatible),
        l4t=l4t,
        jetpack=_jetpack(l4t),
    )


def _strings(path: Path) -> list[str]:
    """The NUL-terminated strings of a device tree's property; none if it is not there."""
    return [part for part in text(path).split("\0") if part]


def _first(pattern: re.Pattern[str], texts: list[str]) -> str | None:
    return next((found[1] for each in texts if (found := pattern.fullmatch(each))), None)


def _l4t(path: Path) -> str | None:
    found = _RELEASE.match(text(path))
    return f"{found[1]}.{found[2]}" if found else None


def _jetpack(l4t: str | None) -> str | None:
    return next((jetpack for start, jetpack in _JETPACKS if (l4t or "").startswith(start)), None)
