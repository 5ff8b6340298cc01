"""What a child reports is passed on once, line by whole line."""

from __future__ import annotations

from appliance.jobs.stages import MetricsTail


def line(key: str) -> bytes:
    return b'{"key": "%s", "message": "m"}\n' % key.encode()


def keys(tail: MetricsTail) -> list[str]:
    return [progress.key for progress in tail.read()]


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


def test_line_of_another_shape_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"key": 1, "message": "m"}\n[]\n' + line("a"))
    assert keys(MetricsTail(path)) == ["a"]
