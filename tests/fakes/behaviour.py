"""How a fake child misbehaves: said by the data it is given, so that each job or model has its own way."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

from appliance import batch, process
from appliance.errors import InvalidInput

# A second process in the group, as a data loader or a converter would be.
GRANDCHILD = (
    "import os, sys, time\nfrom appliance import process\nprocess.die_with_parent()\n"
    "os.write(int(sys.argv[1]), b'up')\ntime.sleep(600)\n"
)


def act(behaviour: str, directory: Path, reporter: batch.Reporter) -> None:
    """Do what the word says; an unknown word is an honest child's."""
    match behaviour:
        case "refuse":
            raise InvalidInput("fake_refusal", "expected better rows, found these", param="rows")
        case "crash":
            print("the fake is about to crash", flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            sys.exit("the fake gives up")
        case "chatter":
            # Much output, and none of it progress.
            while True:
                print("x" * 1000, flush=True)
                time.sleep(0.05)
        case "hang":
            _start_grandchild(directory, reporter)
            time.sleep(600)


def _start_grandchild(directory: Path, reporter: batch.Reporter) -> None:
    (directory / "hung.pid").write_text(str(os.getpid()))
    reading, writing = os.pipe()
    process.start_in_group([sys.executable, "-c", GRANDCHILD, str(writing)], pass_fds=(writing,))
    os.read(reading, 2)
    reporter.report("hanging", f"hanging as {os.getpid()}")
