"""Which accelerator is there, and which profile follows from it?"""

from __future__ import annotations

from appliance.checks.finding import Finding
from appliance.hardware import selection
from appliance.settings import Settings

NAME = "accelerator"
# Training and release of a model of 135 million parameters take about as much.
LEAST_BYTES = 1 << 30


async def check(settings: Settings) -> Finding:
    """Look, then choose the profile as the daemon would; raises ConfigurationError as it would."""
    selected = selection.select(settings)
    found = f"profile {selected.profile.name}: {selected.reason}"
    problems = selected.device.nvml.problems
    if min(selected.machine.device_bytes, selected.machine.host_bytes) < LEAST_BYTES:
        return Finding(
            check=NAME,
            outcome="warning",
            found="; ".join((*problems, f"{found}, which leaves too little memory for any model")),
            next_step="see `appliance profile`: a control group's limit or os_reserve_gib may be the reason",
        )
    if problems:
        return Finding(
            check=NAME,
            outcome="warning",
            found="; ".join((*problems, found)),
            next_step="see whether `nvidia-smi` shows the same; a restart of the machine may help",
        )
    return Finding(check=NAME, outcome="ok", found=found)
