"""The training child runs on the allocator that its memory is planned for, or says what is missing."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from appliance.errors import ChildFailed
from appliance.training import allocator

pytestmark = pytest.mark.torch

PROGRAM = """
import json, os, sys
from pathlib import Path
from appliance.training import allocator
allocator.use()
maps = Path("/proc/self/maps").read_text()
print(json.dumps({"argv": sys.argv[1:], "used": allocator.LIBRARY[:-2] in maps, "pid": os.getpid()}))
"""


def test_program_is_started_anew_with_its_arguments_and_under_the_same_process_id():
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, "one", "two words"], stdout=subprocess.PIPE, text=True
    )
    output, _ = child.communicate(timeout=60)
    assert json.loads(output) == {"argv": ["one", "two words"], "used": True, "pid": child.pid}


def test_library_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(allocator, "LIBRARY", "libno-such-allocator.so.1")
    assert not allocator.is_installed()
    with pytest.raises(ChildFailed, match=r"libno-such-allocator\.so\.1") as caught:
        allocator.use()
    assert caught.value.code == "no_allocator"
    assert caught.value.next_step
