"""Entry point of the engine child; `appliance.engine.client` starts it.

SIGTERM keeps its default: the process ends at once, with nothing to save.
"""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from appliance import process


def main() -> None:
    """Arm the guard, go offline, then load the heavy libraries and serve."""
    process.die_with_parent()
    os.environ.update(process.OFFLINE_ENVIRONMENT)
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


if __name__ == "__main__":
    main()
