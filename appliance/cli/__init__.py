"""The command line: one module a verb. Talks to the daemon over HTTP, as any app would."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; errors, of ours or of files, are one line on stderr and exit status 1."""
    from appliance.cli.app import app
    from appliance.errors import ApplianceError

    try:
        app()
    except ApplianceError as exc:
        sys.exit(f"appliance: {exc.code}: {exc}")
    except OSError as exc:
        sys.exit(
            f"appliance: {exc.filename}: {exc.strerror}" if exc.filename else f"appliance: {exc}"
        )
