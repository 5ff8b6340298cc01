"""Imports many models one after the other, as the import child does one: a line of JSON in, one out.

    {"source": PATH, "directory": PATH}  ->  {"outcome": "imported" or an error's code}

Whatever else happens ends this process, and whoever started it finds out.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import shutil
import sys
from pathlib import Path

from appliance import batch, process
from appliance.errors import ApplianceError


def main() -> None:
    """Answer until the input ends."""
    process.die_with_parent()
    os.environ.update(process.OFFLINE_ENVIRONMENT)
    faulthandler.enable()
    answers = os.fdopen(os.dup(1), "w")
    # Libraries print; what they print is no answer.
    os.dup2(2, 1)
    from appliance.basemodels import importing

    for line in sys.stdin:
        request = json.loads(line)
        directory = Path(request["directory"])
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        spec = {"name": "damaged", "source": request["source"], "licence": "", "origin": "test"}
        (directory / batch.SPEC).write_text(json.dumps(spec))
        outcome = "imported"
        try:
            with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stderr(nowhere):
                importing.import_base_model(directory, batch.Reporter(directory))
        except ApplianceError as exc:
            outcome = exc.code
        print(json.dumps({"outcome": outcome}), file=answers, flush=True)


if __name__ == "__main__":
    main()
