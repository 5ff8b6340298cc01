"""`python -m appliance.release.merge DIRECTORY`: the child that makes a merged Hugging Face directory."""

from __future__ import annotations

from pathlib import Path

from appliance import batch
from appliance.child_records import MergeResult


def main(directory: Path, reporter: batch.Reporter) -> MergeResult:
    """Import late: by now the offline variables are set and the child dies with its parent."""
    from appliance.release import merging

    return merging.merge(directory, reporter)


if __name__ == "__main__":
    batch.run(main)
