"""`appliance serve`: run the daemon in the foreground."""

from __future__ import annotations

from appliance.cli.options import with_settings
from appliance.settings import Settings


@with_settings()
def serve(settings: Settings) -> None:
    """Run the daemon until it is told to stop."""
    import asyncio

    from appliance import daemon, logs

    logs.configure(settings.log_level)
    asyncio.run(daemon.serve(settings))
