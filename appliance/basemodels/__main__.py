"""`python -m appliance.basemodels DIRECTORY`: the import child."""

from __future__ import annotations

from pathlib import Path

from appliance import batch
from appliance.child_records import ImportResult


def main(directory: Path, reporter: batch.Reporter) -> ImportResult:
    """Import late: by now the offline variables are set and the child dies with its parent."""
    from appliance.basemodels import importing

    return importing.import_base_model(directory, reporter)


if __name__ == "__main__":
    batch.run(main)
