"""Is there a state directory that can be written, with room in it?"""

from __future__ import annotations

import shutil
import tempfile

from appliance.checks.finding import Finding
from appliance.settings import Settings

NAME = "state directory"
# A release of a small model needs a few times its size while it is made.
COMFORTABLE_BYTES = 10 << 30
GIB = 1 << 30


async def check(settings: Settings) -> Finding:
    """Write a file there and look at the free space."""
    directory = settings.state_dir
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory) as file:
            file.write(b"x")
    except OSError as exc:
        return Finding(
            check=NAME,
            outcome="failed",
            found=f"{directory} cannot be written: {exc.strerror}",
            next_step="set --state-dir or APPLIANCE_STATE_DIR to a directory of this user",
        )
    free = shutil.disk_usage(directory).free
    enough = free >= COMFORTABLE_BYTES
    return Finding(
        check=NAME,
        outcome="ok" if enough else "warning",
        found=f"{directory}, {free / GIB:.1f} GiB free",
        next_step=None
        if enough
        else f"free some space: {COMFORTABLE_BYTES / GIB:.0f} GiB is comfortable",
    )
