"""Is the memory allocator there that training needs?"""

from __future__ import annotations

from appliance.checks.finding import Finding
from appliance.settings import Settings
from appliance.training import allocator

NAME = "allocator"


async def check(settings: Settings) -> Finding:
    """Ask the loader for the library."""
    if allocator.is_installed():
        return Finding(check=NAME, outcome="ok", found=allocator.LIBRARY)
    return Finding(
        check=NAME,
        outcome="failed",
        found=f"{allocator.LIBRARY} is not installed",
        next_step=allocator.INSTALL,
    )
