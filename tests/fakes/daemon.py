"""The real daemon, with fakes for its children. Configured by `APPLIANCE_*`.

With the argument `hang-at-stop` it hangs where it should end its work.
"""

from __future__ import annotations

import asyncio
import sys
import time

from appliance import daemon, logs, server, settings
from appliance.errors import ApplianceError
from tests import network_guard
from tests.fakes import PROGRAMS


async def hang(_work: server.Work) -> None:
    """Keep the event loop, too."""
    time.sleep(600)


def main() -> None:
    network_guard.install()
    if sys.argv[1:] == ["hang-at-stop"]:
        server.Work.stop = hang  # type: ignore[method-assign]
    given = settings.load()
    logs.configure(given.log_level)
    try:
        asyncio.run(daemon.serve(given, PROGRAMS))
    except ApplianceError as exc:
        sys.exit(f"{exc.code}: {exc}")
    if network_guard.attempts:
        sys.exit(f"reached for the network: {network_guard.attempts}")


if __name__ == "__main__":
    main()
