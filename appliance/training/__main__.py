"""Entry point of the training child: `python -m appliance.training DIRECTORY`."""

from __future__ import annotations

import os
from pathlib import Path

from appliance import batch
from appliance.child_records import TrainingResult
from appliance.training import allocator

LOWEST_PRIORITY = 19


def _main(directory: Path, reporter: batch.Reporter) -> TrainingResult:
    allocator.use()
    # bitsandbytes and datasets look at the environment when they are imported: only `batch.run` has
    # made it an offline one.
    from appliance.training import worker

    # Serving comes first: its threads run whenever they can.
    os.nice(LOWEST_PRIORITY)
    return worker.train(directory, reporter)


if __name__ == "__main__":
    batch.run(_main)
