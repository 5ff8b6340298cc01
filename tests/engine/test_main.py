"""What the engine's process sets before it loads the libraries that read it."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys

import pytest

# Stands in for the module that loads llama.cpp, and tells what that would find.
SCRIPT = """
import os, sys, types
server = types.ModuleType("appliance.engine.server")
server.serve = lambda *_args, **_options: print(os.environ.get("GOMP_SPINCOUNT"))
sys.modules["appliance.engine.server"] = server
from appliance import process
from appliance.engine.__main__ import main
process.die_with_parent = lambda: None
main()
"""


@pytest.mark.parametrize("given", [None, "77"])
def test_waiting_threads_leave_a_core_to_the_daemon(given: str | None) -> None:
    environment = {key: value for key, value in os.environ.items() if key != "GOMP_SPINCOUNT"}
    if given is not None:
        environment["GOMP_SPINCOUNT"] = given
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = ["x.gguf", "--n-ctx=1", "--threads=1", "--slots=1"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments, f"--socket-fd={theirs.fileno()}"],
            env=environment,
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
        )
    expected = given or ("3000" if platform.machine() == "x86_64" else "None")
    assert (done.stdout.strip(), done.returncode) == (expected, 0), done.stderr
