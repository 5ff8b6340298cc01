"""What llama.cpp's process finds in its environment when it starts."""

from __future__ import annotations

import asyncio
import platform
import re
import sys
from pathlib import Path

import pytest

from appliance.engine import client
from appliance.engine.environment import environment
from appliance.errors import ChildFailed


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GOMP_SPINCOUNT", "GLIBC_TUNABLES"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(("machine", "added"), [("x86_64", True), ("aarch64", False)])
def test_waiting_threads_leave_a_core_to_the_daemon_where_their_pause_is_known(
    monkeypatch: pytest.MonkeyPatch, machine: str, added: bool
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert (environment().get("GOMP_SPINCOUNT") == "3000") == added
    monkeypatch.setenv("GOMP_SPINCOUNT", "77")
    assert "GOMP_SPINCOUNT" not in environment()


HUGE, LARGE = "glibc.malloc.hugetlb=1", "glibc.malloc.mmap_threshold=4194304"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, f"{HUGE}:{LARGE}"),
        ("glibc.malloc.perturb=1", f"glibc.malloc.perturb=1:{HUGE}:{LARGE}"),
        ("glibc.malloc.hugetlb=0", f"glibc.malloc.hugetlb=0:{LARGE}"),
        ("glibc.malloc.mmap_threshold=1", f"glibc.malloc.mmap_threshold=1:{HUGE}"),
        (f"{LARGE}:{HUGE}", None),
    ],
)
def test_memory_is_in_huge_pages_and_given_back_unless_somebody_decided_otherwise(
    monkeypatch: pytest.MonkeyPatch, given: str | None, expected: str | None
) -> None:
    if given is not None:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    assert environment().get("GLIBC_TUNABLES") == expected


def test_engine_is_started_with_it(tmp_path: Path) -> None:
    program = "import os; print(os.environ['GLIBC_TUNABLES'], os.environ['HF_HUB_OFFLINE'])"
    command = (sys.executable, "-c", program)
    starting = client.start("engine", tmp_path, n_ctx=1, threads=1, slots=1, program=command)
    with pytest.raises(ChildFailed, match=re.escape(f"last line: {HUGE}:{LARGE} 1")):
        asyncio.run(starting)
