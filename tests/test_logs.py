"""A log record is one line of JSON, whatever is in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from appliance import logs

Written = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def written(capsys: pytest.CaptureFixture[str]) -> Iterator[Written]:
    """`written(work)`: the lines that `work` logs, decoded."""
    loggers = [logging.getLogger(name) for name in ("", "granian", "apscheduler", "alembic")]
    before = [(each, each.level, each.handlers[:]) for each in loggers]

    def lines(work: Callable[[], object]) -> list[dict[str, Any]]:
        logs.configure("INFO")
        work()
        return [json.loads(line) for line in capsys.readouterr().out.split("\n") if line]

    yield lines
    for each, level, handlers in before:
        each.setLevel(level)
        each.handlers[:] = handlers


def log(text: str = "m", **fields: object) -> Callable[[], None]:
    return lambda: logging.getLogger("x").info(text, extra=fields)


def test_record_is_one_object_with_its_extra_fields(written):
    def work() -> None:
        logging.getLogger("a.b").info("hello %s", "you", extra={"job": "ftjob-1", "count": 3})

    (line,) = written(work)
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "INFO",
        "logger": "a.b",
        "message": "hello you",
        "job": "ftjob-1",
        "count": 3,
    }


def test_least_severity_is_kept_and_chatty_libraries_are_quiet(written):
    def work() -> None:
        logging.getLogger("x").debug("no")
        logging.getLogger("alembic.runtime").info("no")
        logging.getLogger("granian.access").warning("no")
        logging.getLogger("x").warning("yes")

    assert [line["message"] for line in written(work)] == ["yes"]


@pytest.mark.parametrize(
    "text",
    ["two\nlines", "\x1b[31mred\x00", '{"fake": "line"}\n', "\u2028é\U0001f600", "\udc80 a name"],
)
def test_foreign_text_stays_within_its_line(written, text):
    (line,) = written(log(text, path=text))
    assert line["message"].encode("utf-8", "replace") == text.encode("utf-8", "replace")


@pytest.mark.parametrize(
    "value", [Path("/x"), {1, 2}, object(), 1 << 100, float("nan"), b"\xff", {"a": {2: None}}]
)
def test_any_value_can_be_a_field(written, value):
    (line,) = written(log("m", value=value))
    assert line["message"] == "m"


def test_exception_is_told_in_the_same_line(written):
    def work() -> None:
        try:
            raise ValueError("bad\nthing")
        except ValueError:
            logging.getLogger("x").exception("failed")

    (line,) = written(work)
    assert line["level"] == "ERROR"
    assert "ValueError: bad\nthing" in line["exception"]


def test_extra_fields_cannot_forge_what_the_record_is(written):
    (line,) = written(log("m", level="ERROR", time="never", logger="y"))
    assert (line["level"], line["logger"]) == ("INFO", "x")
    assert line["time"] != "never"
