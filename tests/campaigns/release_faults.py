"""A release that is killed, or meets a full or failing disk, at any of its system calls, leaves nothing half.

    python -m tests.campaigns.release_faults --count 100 --seed 0

Every time the real child releases a small model under strace, which kills it at, or fails, one write, rename,
removal or reservation, chosen by chance among all that an undisturbed release makes. Then the child runs in
the same directory again, undisturbed: its files have to be those of a release that nothing happened to, byte
for byte, and the adapter as it was. Needs strace, and llama.cpp's converter in APPLIANCE_TEST_CONVERTER.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from appliance import durable, process
from appliance.batch import Failure
from appliance.child_records import ReleaseResult
from tests.children import make_adapter, required_path
from tests.release import families
from tests.release.specs import base_spec, release, trained_spec

CALLS = (
    *("write", "pwrite64", "fallocate", "ftruncate", "fsync"),
    *("rename", "mkdir", "unlink", "unlinkat", "rmdir"),
)
FAULTS = ("signal=KILL", "error=ENOSPC", "error=EIO")
# What the directory of a release may hold that did not end well; besides, where nothing was left to say it.
LEFT = {"spec.json", "metrics.jsonl", "heartbeat", "lock", "error.json", "stderr.txt", "trace.txt"}


class Fault(NamedTuple):
    """The `number`th `call` of a thread is met by `kind`."""

    call: str
    number: int
    kind: str


class Case(NamedTuple):
    """What is released, and what comes of it where nothing happens."""

    spec: dict[str, Any]
    digests: list[str]
    calls: Mapping[str, int]
    adapter: Path
    adapter_sha256: str


def prepare(work: Path) -> Case:
    """A small base and an adapter, released once without a fault, and once more to count the calls."""
    converter = required_path("APPLIANCE_TEST_CONVERTER")
    base = work / "hf"
    base.mkdir()
    families.mistral(work, base)
    (base_file,) = release(work / "base", base_spec(base, converter, quantizations=["Q8_0"])).files
    adapter = make_adapter(base, work / "adapter", deviation=0.05, control_text=False)
    spec = trained_spec(base, Path(base_file.path), adapter, converter, end_of_turn_token_id=4)
    undisturbed = _digests(release(work / "undisturbed", spec))
    traced = work / "traced"
    assert _run(traced, spec, ["-o", str(traced / "trace.txt")]) == 0
    assert _digests(durable.read_json(traced / "result.json", ReleaseResult)) == undisturbed
    return Case(
        spec=spec,
        digests=undisturbed,
        calls=_count_calls(traced / "trace.txt"),
        adapter=adapter,
        adapter_sha256=durable.sha256_of_directory(adapter),
    )


def _count_calls(trace: Path) -> dict[str, int]:
    """Of each call the most that one thread makes: strace counts for each by itself."""
    found: collections.Counter[tuple[str, str]] = collections.Counter()
    for line in trace.read_text(errors="replace").splitlines():
        if match := re.match(r"(\d+) +(\w+)\(", line):
            found[match[2], match[1]] += 1
    most: dict[str, int] = {}
    for (call, _), count in found.items():
        most[call] = max(count, most.get(call, 0))
    return most


def draw(case: Case, chance: random.Random) -> Fault:
    """Any of the calls that were counted; the rare ones as often as the frequent."""
    call = chance.choice(sorted(case.calls))
    return Fault(call, chance.randint(1, case.calls[call]), chance.choice(FAULTS))


def check(case: Case, fault: Fault, directory: Path) -> str:
    """Release with the fault, then without; returns how the first ended, raises AssertionError."""
    trace = directory / "trace.txt"
    injected = f"inject={fault.call}:{fault.kind}:when={fault.number}"
    status = _run(directory, case.spec, ["-o", str(trace), "-e", injected])
    # Threads share their work differently each time, so that none may come to that call.
    reached = re.search(r"\(INJECTED\)|killed by SIGKILL", trace.read_text(errors="replace"))
    complete = (directory / "result.json").exists()
    if complete:
        outcome = "complete"
        result = durable.read_json(directory / "result.json", ReleaseResult)
        assert _digests(result) == case.digests
    elif status == 0:
        raise AssertionError("it says that it has ended well, and there is no result")
    elif (directory / "error.json").exists():
        outcome = durable.read_json(directory / "error.json", Failure).code
        if fault.call not in ("unlink", "unlinkat", "rmdir"):
            _nothing_half_is_left(directory, case)
    else:
        outcome = "died"
    assert durable.sha256_of_directory(case.adapter) == case.adapter_sha256
    again = release(directory, case.spec)
    assert _digests(again) == case.digests
    assert not (directory / "intermediate").exists()
    assert not list(directory.glob(".*.tmp"))
    return outcome if reached else "not reached"


def _nothing_half_is_left(directory: Path, case: Case) -> None:
    left = {path.name for path in directory.iterdir() if path.suffix != ".tmp"} - LEFT
    if left:
        # Only the word on it is missing; who reads that removes them.
        names = {*(f"model-{each}.gguf" for each in case.spec["quantizations"]), "adapter.gguf"}
        assert left == names
        assert {durable.sha256_of(directory / name) for name in left} == set(case.digests)


def _digests(result: ReleaseResult) -> list[str]:
    assert result.adapter_file is not None
    return [file.sha256 for file in (*result.files, result.adapter_file)]


def _run(directory: Path, spec: dict[str, Any], strace: list[str]) -> int:
    directory.mkdir()
    (directory / "spec.json").write_text(json.dumps(spec))
    # Not with --seccomp-bpf, which is faster, and under which strace 6.1 injects no signals.
    tracing = ["strace", "-f", "-qq", "-e", f"trace={','.join(CALLS)}", *strace]
    with (directory / "stderr.txt").open("wb") as stderr:
        return subprocess.run(
            [*tracing, *process.python_child("appliance.release", str(directory))],
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env={**os.environ, **process.OFFLINE_ENVIRONMENT, "PYTHONDONTWRITEBYTECODE": "1"},
            timeout=300,
            check=False,
        ).returncode


def run(count: int, seed: int, work: Path) -> collections.Counter[str]:
    """How many ended how; raises AssertionError, which names the fault, for the first that is not right."""
    case = prepare(work)
    print(dict(case.calls), flush=True)
    chance = random.Random(seed)
    outcomes: collections.Counter[str] = collections.Counter()
    for number in range(count):
        fault = draw(case, chance)
        directory = work / f"case-{number}"
        try:
            outcome = check(case, fault, directory)
        except AssertionError as exc:
            raise AssertionError(f"{fault} in {directory}: {exc}") from exc
        outcomes[outcome] += 1
        print(number, *fault, outcome, flush=True)
        shutil.rmtree(directory)
    return outcomes


def main() -> int:
    """Run it as asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    begun = time.monotonic()
    work = Path(tempfile.mkdtemp())
    outcomes = run(asked.count, asked.seed, work)
    shutil.rmtree(work)
    print(dict(outcomes), f"in {time.monotonic() - begun:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
