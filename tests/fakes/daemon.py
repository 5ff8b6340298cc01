"""The real daemon, with fakes for its children. Configured by `APPLIANCE_*` alone."""

from __future__ import annotations

import asyncio
import sys

from appliance import daemon, logs, settings
from appliance.errors import ApplianceError
from tests import network_guard
from tests.fakes import PROGRAMS


def main() -> None:
    network_guard.install()
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
