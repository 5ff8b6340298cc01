"""What an engine is started with in its environment, since it is read before the engine's own code runs.

What the operator has set there holds. Knows nothing of the engine.
"""

from __future__ import annotations

import os
import platform

# How often a thread of OpenMP looks for work before it sleeps. On x86 a look takes 40 to 140 cycles, so this
# is 50 to 150 microseconds: longer than the waits within a decode call, shorter than those between two. Then
# there is a core for the daemon, which passes on what was said. With libgomp's own 300,000 the core is taken,
# and the thread that is to make the next call waits for the daemon. Measured on Zen 4. Where there is no such
# pause, as on Arm, it would be far too short.
SPIN_COUNT = "3000"
# What glibc allocates lies in huge pages, as far as the kernel gives them: weights that were copied into the
# order of the CPU, and what was decoded. Each token reads all of them. Decode calls for one answer are 4 to
# 7 % faster (over HTTP 1 % was seen), for eight hardly so; the engine starts 0.3 s later. From glibc 2.35 on.
HUGE_PAGES = "glibc.malloc.hugetlb=1"
# Blocks from 4 MiB on are the kernel's again as soon as they are free. Else glibc takes ever larger ones from
# its heap, where what the shelf lets go leaves holes: with 32 clients an engine took 355 to 410 MiB, and so
# 299 to 314. To copy to the shelf took no longer. What a token needs is less, up to 300,000 candidates.
LARGE_BLOCKS = "glibc.malloc.mmap_threshold=4194304"


def environment() -> dict[str, str]:
    """What it has more, or otherwise, than the daemon."""
    added: dict[str, str] = {}
    if platform.machine() == "x86_64" and "GOMP_SPINCOUNT" not in os.environ:
        added["GOMP_SPINCOUNT"] = SPIN_COUNT
    given = os.environ.get("GLIBC_TUNABLES", "")
    ours = [each for each in (HUGE_PAGES, LARGE_BLOCKS) if each.partition("=")[0] not in given]
    if ours:
        added["GLIBC_TUNABLES"] = ":".join([*filter(None, [given]), *ours])
    return added
