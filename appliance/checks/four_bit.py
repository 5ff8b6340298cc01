"""Does 4-bit training work here? Decided by a real forward and backward pass, in a child.

An import proves nothing: on some devices the first kernel is what fails (hardware notes on Jetson).
"""

from __future__ import annotations

from appliance import process
from appliance.checks.finding import Finding
from appliance.settings import Settings

NAME = "4-bit training"
STALL_TIMEOUT_SECONDS = 180.0


async def check(settings: Settings) -> Finding:
    """Run the training child's probe and take its last line."""
    child = await process.start(NAME, process.python_child("appliance.training.probe"))
    status = await process.wait_or_stall(
        child, progress=lambda: None, stall_timeout_seconds=STALL_TIMEOUT_SECONDS
    )
    if status != 0:
        return Finding(
            check=NAME,
            outcome="failed",
            found=child.describe_death(),
            next_step="install the training extra: ./install.sh",
        )
    return Finding(check=NAME, outcome="ok", found=child.last_line)
