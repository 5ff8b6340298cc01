"""`python -m appliance.release DIRECTORY`: the release child."""

from __future__ import annotations

from pathlib import Path

from appliance import batch
from appliance.child_records import ReleaseResult


def main(directory: Path, reporter: batch.Reporter) -> ReleaseResult:
    """Import late: by now the offline variables are set and the child dies with its parent."""
    from appliance.release import releasing

    return releasing.release(directory, reporter)


if __name__ == "__main__":
    batch.run(main)
