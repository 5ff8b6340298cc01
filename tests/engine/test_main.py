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
names = ["GOMP_SPINCOUNT", "GLIBC_TUNABLES"]
server.serve = lambda *_args, **_options: print(*map(os.environ.get, names))
sys.modules["appliance.engine.server"] = server
from appliance import process
from appliance.engine.__main__ import main
process.die_with_parent = lambda: None
main()
"""


def found(environment: dict[str, str]) -> list[str]:
    """What is set once llama.cpp would be loaded."""
    names = ("GOMP_SPINCOUNT", "GLIBC_TUNABLES")
    bare = {key: value for key, value in os.environ.items() if key not in names}
    ours, theirs = socket.socketpair()
    with ours, theirs:
        arguments = ["x.gguf", "--n-ctx=1", "--threads=1", "--slots=1"]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments, f"--socket-fd={theirs.fileno()}"],
            env={**bare, **environment},
            pass_fds=[theirs.fileno()],
            capture_output=True,
            text=True,
            timeout=60,
        )
    assert done.returncode == 0, done.stderr
    return done.stdout.split()


@pytest.mark.parametrize("given", [None, "77"])
def test_waiting_threads_leave_a_core_to_the_daemon(given: str | None) -> None:
    expected = given or ("3000" if platform.machine() == "x86_64" else "None")
    assert found({} if given is None else {"GOMP_SPINCOUNT": given})[0] == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.perturb=1", "glibc.malloc.perturb=1:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_memory_is_in_huge_pages_unless_somebody_decided_otherwise(
    given: str | None, expected: str
) -> None:
    assert found({} if given is None else {"GLIBC_TUNABLES": given})[1] == expected
