"""The number format that training computes in: bfloat16 where the device has instructions for it.

Without them a CPU emulates bfloat16 number by number: a matrix product took 90 times as long as in float32 on
an AVX2-only AMD EPYC (torch 2.13: 0.85 against 76 GFLOP/s on two cores). The choice follows from the device
alone, so that a resumed run computes as it began.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from appliance.compute import BFLOAT16_FEATURES

CPUINFO = Path("/proc/cpuinfo")


class Precision(NamedTuple):
    """A number format, and why it was chosen."""

    dtype: torch.dtype
    reason: str


def choose() -> Precision:
    """The format for this device."""
    if torch.cuda.is_available():  # not tried on a GPU
        return Precision(torch.bfloat16, "computing in bfloat16 on the GPU")
    if found := sorted(cpu_features() & BFLOAT16_FEATURES):
        return Precision(torch.bfloat16, f"computing in bfloat16: the CPU has {', '.join(found)}")
    return Precision(
        torch.float32, "computing in float32: the CPU has no instructions for bfloat16"
    )


def cpu_features() -> frozenset[str]:
    """What Linux says that the first CPU can do."""
    for line in CPUINFO.read_text(encoding="utf-8").splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()
