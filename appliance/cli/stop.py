"""`appliance stop`: end the daemon of a state directory, however it was started."""

from __future__ import annotations

import contextlib

from appliance import detached
from appliance.cli import output
from appliance.cli.options import with_settings
from appliance.errors import NotFound
from appliance.settings import Settings
from appliance.store.lock import holder


@with_settings(("state_dir",))
def stop(settings: Settings) -> None:
    """Stop the daemon; it is gone when this returns, and jobs go on at the next start."""
    stop_daemon(settings)
    output.console.print("the daemon has stopped")


def stop_daemon(settings: Settings) -> None:
    """Raises NotFound if none runs, ChildFailed if it does not end."""
    pid = holder(settings.state_dir)
    if pid is None:
        raise NotFound(
            "no_daemon",
            f"a daemon should work on {settings.state_dir}; none does",
            next_step="see whether --state-dir is the one that it was started with",
        )
    with contextlib.suppress(ProcessLookupError):  # somebody else was faster
        detached.stop(pid)
