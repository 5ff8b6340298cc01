"""Entry point of the engine child; `appliance.engine.client` starts it.

SIGTERM keeps its default: the process ends at once, with nothing to save.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
from pathlib import Path

from appliance import process

# How often a thread of OpenMP looks for work before it sleeps. On x86 a look takes 40 to 140 cycles, so this
# is 50 to 150 microseconds: longer than the waits within a decode call, shorter than those between two. Then
# there is a core for the daemon, which passes on what was said. With libgomp's own 300,000 the core is taken,
# and the thread that is to make the next call waits for the daemon. Measured on Zen 4. Where there is no such
# pause, as on Arm, it would be far too short.
SPIN_COUNT = "3000"
# What glibc allocates lies in huge pages, as far as the kernel gives them: weights that were copied into the
# order of the CPU, and what was decoded. Each token reads all of them. Decode calls for one answer are 4 to
# 7 % faster (over HTTP 1 % was seen), for eight hardly so; the engine starts 0.3 s later. From glibc 2.35 on.
TUNABLES = "GLIBC_TUNABLES"
HUGE_PAGES = "glibc.malloc.hugetlb"


def main() -> None:
    """Arm the guard, go offline, then load the heavy libraries and serve."""
    _use_huge_pages()
    process.die_with_parent()
    os.environ.update(process.OFFLINE_ENVIRONMENT)
    if platform.machine() == "x86_64":
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    parser = argparse.ArgumentParser(prog="python -m appliance.engine")
    parser.add_argument("gguf", type=Path)
    parser.add_argument("--n-ctx", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--adapter-budget-bytes", type=int, default=0)
    parser.add_argument("--socket-fd", type=int, required=True)
    arguments = parser.parse_args()

    from appliance.engine.server import serve

    serve(
        socket.socket(fileno=arguments.socket_fd),
        arguments.gguf,
        n_ctx=arguments.n_ctx,
        threads=arguments.threads,
        slots=arguments.slots,
        adapter_budget_bytes=arguments.adapter_budget_bytes,
    )


def _use_huge_pages() -> None:
    """Start anew with them, unless somebody has decided on them already."""
    given = os.environ.get(TUNABLES, "")
    if HUGE_PAGES not in given:
        process.start_anew({TUNABLES: f"{given}:{HUGE_PAGES}=1".lstrip(":")})


if __name__ == "__main__":
    main()
