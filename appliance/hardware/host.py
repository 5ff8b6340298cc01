"""What of this computer the process may use: memory, CPUs, and the control groups that bound both."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from pathlib import Path

from appliance.errors import ConfigurationError
from appliance.hardware.device import Host
from appliance.hardware.files import number, text

# What decides how fast matrices are multiplied; Linux's own names (x86: flags, ARM: Features).
FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_bf16",
    "asimd",
    "asimddp",
    "bf16",
    "i8mm",
    "sve",
)
_CGROUPS = "sys/fs/cgroup"


def read(root: Path) -> Host:
    """Read /proc and /sys below `root`; raises ConfigurationError if there is no memory to read of."""
    meminfo = _meminfo(root / "proc/meminfo")
    total, available = meminfo["MemTotal"], meminfo["MemAvailable"]
    for limit, used in _memory_limits(root):
        total = min(total, limit)
        available = min(available, max(0, limit - used))
    return Host(
        machine=_machine(root),
        cpu_features=_features(root / "proc/cpuinfo"),
        cpus=min([float(_cpu_count(root)), *_cpu_quotas(root)]),
        memory_bytes=total,
        memory_available_bytes=available,
        installed_bytes=meminfo["MemTotal"],
    )


def _meminfo(path: Path) -> dict[str, int]:
    """Bytes by name; the file gives kibibytes."""
    found = {}
    for line in text(path).splitlines():
        name, _, rest = line.partition(":")
        kibibytes, _, unit = rest.strip().partition(" ")
        if unit == "kB" and kibibytes.isdecimal():
            found[name] = int(kibibytes) * 1024
    if not {"MemTotal", "MemAvailable"} <= found.keys():
        raise ConfigurationError(
            "no_memory_facts",
            f"{path} should give MemTotal and MemAvailable; it gives {sorted(found)[:5]}",
            next_step="see whether /proc is mounted",
        )
    return found


def _features(path: Path) -> tuple[str, ...]:
    for line in text(path).splitlines():
        name, _, rest = line.partition(":")
        if name.strip() in ("flags", "Features"):
            words = set(rest.split())
            return tuple(feature for feature in FEATURES if feature in words)
    return ()


def _machine(root: Path) -> str:
    return platform.machine() if root == Path("/") else text(root / "proc/sys/kernel/arch").strip()


def _cpu_count(root: Path) -> int:
    if root == Path("/"):
        return len(os.sched_getaffinity(0))
    lines = text(root / "proc/cpuinfo").splitlines()
    return max(1, sum(line.startswith("processor") for line in lines))


def _memory_limits(root: Path) -> Iterator[tuple[int, int]]:
    """(limit, in use) of every control group around this process; page cache is not in use."""
    for group in _groups(root, ""):
        if (limit := number(group / "memory.max")) is not None:
            yield limit, _in_use(group / "memory.current", group / "memory.stat", "inactive_file")
    for group in _groups(root, "memory"):
        if (limit := number(group / "memory.limit_in_bytes")) is not None:
            usage = group / "memory.usage_in_bytes"
            yield limit, _in_use(usage, group / "memory.stat", "total_inactive_file")


def _in_use(usage: Path, statistics: Path, page_cache: str) -> int:
    counted = dict(line.split(" ", 1) for line in text(statistics).splitlines() if " " in line)
    cached = counted.get(page_cache, "")
    return (number(usage) or 0) - (int(cached) if cached.isdecimal() else 0)


def _cpu_quotas(root: Path) -> Iterator[float]:
    for group in _groups(root, ""):
        quota, _, period = text(group / "cpu.max").partition(" ")
        if quota.isdecimal() and period.strip().isdecimal() and int(period):
            yield int(quota) / int(period)
    for group in _groups(root, "cpu"):
        quota_us, period_us = (
            number(group / "cpu.cfs_quota_us"),
            number(group / "cpu.cfs_period_us"),
        )
        if quota_us and period_us:
            yield quota_us / period_us


def _groups(root: Path, controller: str) -> list[Path]:
    """This process's group of a controller ("" for version 2) and those around it, innermost first.

    In a container the path may name groups outside of what is mounted; those do not exist here.
    """
    for line in text(root / "proc/self/cgroup").splitlines():
        _, _, rest = line.partition(":")
        controllers, colon, path = rest.partition(":")
        if colon and controller in controllers.split(","):
            mount = root / _CGROUPS / controllers
            own = mount / path.strip("/")
            return [each for each in (own, *own.parents) if each.is_relative_to(mount)]
    return []
