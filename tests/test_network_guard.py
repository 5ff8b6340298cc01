"""What reaches for the network is stopped and told, in a child as well, even if it swallows the error."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys

from tests import network_guard

# An address for documentation (RFC 5737): nobody's.
NOBODY = "192.0.2.1"
REACH = f"""
import contextlib, socket
with contextlib.suppress(OSError):
    socket.create_connection(("{NOBODY}", 80), timeout=1)
    print("reached")
with contextlib.suppress(OSError):
    socket.create_connection(("127.0.0.1", 1), timeout=1)
"""


def test_attempt_of_this_process_is_told():
    with contextlib.suppress(PermissionError):
        socket.create_connection((NOBODY, 80), timeout=1)
    assert network_guard.take_attempts() == [NOBODY]


def test_attempt_of_a_child_is_told_although_it_swallows_the_error():
    done = subprocess.run(
        [sys.executable, "-c", REACH],
        capture_output=True,
        text=True,
        env={**os.environ, **network_guard.CHILD_ENVIRONMENT},
        check=True,
    )
    assert done.stdout == ""
    assert network_guard.take_attempts() == [NOBODY]
