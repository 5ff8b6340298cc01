"""What a child reports is passed on once, line by whole line."""

from __future__ import annotations

import asyncio
import sys

import msgspec
import pytest

from appliance import batch, durable
from appliance.child_records import ReleaseResult, ReleaseSpec
from appliance.errors import OutOfDisk
from appliance.jobs import stages
from appliance.jobs.stages import MetricsTail


class TrainingStub(msgspec.Struct):
    """A result, and a spec."""

    steps: int


# A child that ends at once.
FINISHING = """
import sys
from pathlib import Path
work = Path(sys.argv[1])
(work / "metrics.jsonl").write_text(
    '{"key": "a", "message": "m"}\\n{"key": "last", "message": "m"}\\n'
)
(work / "result.json").write_text('{"steps": 3}')
"""


def line(key: str) -> bytes:
    return b'{"key": "%s", "message": "m"}\n' % key.encode()


def keys(tail: MetricsTail) -> list[str]:
    lines, tail.offset = tail.read()
    return [progress.key for progress in lines]


def test_each_line_is_read_once_and_only_when_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(path)
    assert keys(tail) == []
    path.write_bytes(line("a") + line("b")[:10])
    assert keys(tail) == ["a"]
    assert keys(tail) == []
    path.write_bytes(line("a") + line("b") + line("c"))
    assert keys(tail) == ["b", "c"]


def test_torn_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line("a") + b'{"key": "to' + line("b") + b"\x00\x00\n" + line("c"))
    assert keys(MetricsTail(path)) == ["a", "c"]


@pytest.mark.parametrize(
    "damaged",
    [
        b'{"key": "\xff", "message": "m"}',
        b'{"key": "k", "message": "\xc3{"}',
        b'{"key": "k", "message": "m", "data": {"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}}",
    ],
    ids=["key", "message", "nesting"],
)
def test_line_with_damaged_text_is_passed_over(tmp_path, damaged):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(line("a") + damaged + b"\n" + line("b"))
    assert keys(MetricsTail(path)) == ["a", "b"]


def test_line_of_another_shape_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"key": 1, "message": "m"}\n[]\n' + line("a"))
    assert keys(MetricsTail(path)) == ["a"]


def test_finished_stage_is_not_run_again_but_what_it_said_last_is_passed_on(tmp_path):
    finished = ReleaseResult(files=(), seconds=1.0)
    durable.write_json(tmp_path / batch.RESULT, finished)
    (tmp_path / batch.METRICS).write_bytes(line("a") + line("last"))
    told: list[str] = []
    result = asyncio.run(
        stages.run(
            "a stage",
            ["/no/such/program"],
            tmp_path,
            ReleaseSpec(
                model_name="m",
                base_directory="b",
                trained=None,
                converter_directory="c",
                quantizations=(),
                threads=1,
            ),
            ReleaseResult,
            on_progress=lambda lines: told.extend(each.key for each in lines),
            stall_timeout_seconds=1,
        )
    )
    assert result == finished
    assert told == ["a", "last"]


def test_finished_work_outlasts_a_full_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "RETRY_SECONDS", 0.01)
    finished = TrainingStub(steps=3)
    program = [sys.executable, "-c", FINISHING]
    told: list[str] = []
    full = [OutOfDisk("out_of_disk", "no room")] * 3

    def store(lines):
        if full:
            raise full.pop()
        told.extend(each.key for each in lines)

    result = asyncio.run(
        stages.run(
            "a stage",
            program,
            tmp_path,
            finished,
            TrainingStub,
            on_progress=store,
            stall_timeout_seconds=30,
        )
    )
    assert (result, told, full) == (finished, ["a", "last"], [])
