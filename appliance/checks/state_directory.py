"""Is there a state directory that can be written, or a place for one, with room in it?"""

from __future__ import annotations

import shutil

from appliance.checks.finding import Finding
from appliance.settings import Settings
from appliance.store.store import create_state_dir

NAME = "state directory"
# A release of a small model needs a few times its size while it is made.
COMFORTABLE_BYTES = 10 << 30
GIB = 1 << 30


async def check(settings: Settings) -> Finding:
    """Write a file there and look at the free space; raises ConfigurationError if that fails.

    Whoever only asks makes no directory: it would be this user's, and not the service's.
    """
    directory = place = settings.state_dir
    while not place.exists():
        place = place.parent
    create_state_dir(place)
    there = str(directory) if place == directory else f"{directory}, which the daemon will make"
    free = shutil.disk_usage(place).free
    enough = free >= COMFORTABLE_BYTES
    return Finding(
        check=NAME,
        outcome="ok" if enough else "warning",
        found=f"{there}, {free / GIB:.1f} GiB free",
        next_step=None
        if enough
        else f"free some space: {COMFORTABLE_BYTES / GIB:.0f} GiB is comfortable",
    )
