"""Every fault of a training file is named by line and field, and nothing else is refused."""

from __future__ import annotations

import json

import pytest

from appliance.datasets.chat_rows import (
    LINES_BETWEEN,
    MAX_LINE_BYTES,
    MAX_REPORTED_FAULTS,
    check_file,
)
from appliance.errors import InvalidInput, Unavailable

USER = {"role": "user", "content": "q"}
ANSWER = {"role": "assistant", "content": "a"}
GOOD = json.dumps({"messages": [USER, ANSWER]})


def line(*messages: object, **more: object) -> str:
    return json.dumps({"messages": list(messages), **more})


# The line, and what the complaint says after its number.
BAD_LINES = [
    ("", "empty"),
    ("   ", "empty"),
    ("{", "truncated"),
    ("not json", "malformed"),
    ("\ufeff" + GOOD, "malformed"),
    (GOOD + GOOD, "trailing"),
    ("[" * 100_000, "Expected `object`"),
    ("[]", "Expected `object`, got `array`"),
    ('"text"', "Expected `object`, got `str`"),
    ("null", "Expected `object`, got `null`"),
    ("{}", "Object missing required field `messages`"),
    ('{"prompt": "p", "completion": "c"}', "unknown field `prompt`"),
    (line(USER, ANSWER, tools=[]), "unknown field `tools`"),
    ('{"messages": null}', "messages: Expected `array`, got `null`"),
    ('{"messages": {}}', "messages: Expected `array`, got `object`"),
    (line(), "messages: Expected `array` of length >= 1"),
    (line("hello"), "messages[0]: Expected `object`, got `str`"),
    (line([[[]]]), "messages[0]: Expected `object`, got `array`"),
    (line({"content": "q"}, ANSWER), "missing required field `role`"),
    (line({"role": "user"}, ANSWER), "missing required field `content`"),
    (line({"role": "tool", "content": "q"}, ANSWER), "messages[0].role: Invalid enum value 'tool'"),
    (line({"role": "User", "content": "q"}, ANSWER), "Invalid enum value 'User'"),
    (line({"role": None, "content": "q"}, ANSWER), "messages[0].role: Expected `str`"),
    (
        line({"role": "user", "content": ""}, ANSWER),
        "messages[0].content: Expected `str` of length >= 1",
    ),
    (line({"role": "user", "content": None}, ANSWER), "messages[0].content: Expected `str`"),
    (line({"role": "user", "content": ["q"]}, ANSWER), "messages[0].content: Expected `str`"),
    (line({"role": "user", "content": 5}, ANSWER), "messages[0].content: Expected `str`"),
    (line({**USER, "tool_calls": []}, ANSWER), "unknown field `tool_calls`"),
    (line(USER, {**ANSWER, "weight": 2}), "messages[1].weight: Invalid enum value 2"),
    (line(USER, {**ANSWER, "weight": "1"}), "messages[1].weight: Expected `int"),
    (line(USER, {**ANSWER, "weight": 0.5}), "messages[1].weight: Expected `int"),
    (line(USER, {**ANSWER, "weight": 0}), "messages: every assistant message has weight 0"),
    (line({**USER, "weight": 1}, ANSWER), "messages[0].weight: only assistant"),
    (line(USER), "messages[0].role: the last message should be the assistant's, found 'user'"),
    (line(USER, ANSWER, USER), "messages[2].role: the last message"),
    (line(USER, {"role": "system", "content": "s"}, ANSWER), "messages[1].role: a system message"),
    ('{"messages": [{"role": "user", "content": "\\ud800"}]}', "truncated"),
    ('{"messages": [{"role": "user", "content": "\n"}]}', "malformed: invalid character"),
]


def complaint(tmp_path, content: bytes) -> str:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content)
    with pytest.raises(InvalidInput) as caught:
        check_file(path)
    assert caught.value.param == "file"
    return caught.value.message


def rows_of(tmp_path, content: str) -> int:
    path = tmp_path / "train.jsonl"
    path.write_bytes(content.encode())
    return check_file(path).rows


def test_longest_row_is_measured_in_bytes(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(f"{GOOD}\n{GOOD[:-1]}    }}\n{GOOD}\n")
    assert check_file(path).longest_row_bytes == len(GOOD) + 5


@pytest.mark.parametrize(("bad", "fault"), BAD_LINES, ids=range(len(BAD_LINES)))
def test_bad_line_is_named_with_its_number_and_field(tmp_path, bad, fault):
    # A raw line feed cannot be part of a line; this one stands for any other control character.
    content = f"{GOOD}\n{GOOD}\n{bad.replace(chr(10), chr(1))}\n{GOOD}\n"
    message = complaint(tmp_path, content.encode())
    assert message.startswith("every line should be one chat example, but 1 of 4 are not: line 3: ")
    assert fault in message


def test_bad_lines_are_many():
    assert len(BAD_LINES) == 38


def test_bytes_that_are_no_utf8_are_named(tmp_path):
    content = GOOD.encode() + b"\n" + GOOD.encode().replace(b'"q"', b'"\xff"') + b"\n"
    assert "line 2: " in complaint(tmp_path, content)


def test_faults_are_listed_up_to_a_limit_and_counted_beyond(tmp_path):
    content = b"\n".join([b"x"] * 500 + [GOOD.encode()])
    message = complaint(tmp_path, content)
    assert message.count("line ") == MAX_REPORTED_FAULTS + 1
    assert "500 of 501" in message
    assert f"and {500 - MAX_REPORTED_FAULTS} more" in message


def test_complaint_stays_short_whatever_the_lines_hold(tmp_path):
    role = "x" * 1_000_000
    content = (line({"role": role, "content": "q"}, ANSWER) + "\n").encode() * 20
    assert len(complaint(tmp_path, content)) < 20_000


def test_endless_line_is_refused_without_being_read_whole(tmp_path):
    endless = b"x" * (3 * MAX_LINE_BYTES)
    message = complaint(tmp_path, GOOD.encode() + b"\n" + endless + b"\n" + GOOD.encode())
    assert f"1 of 3 are not: line 2: longer than {MAX_LINE_BYTES} bytes" in message


def test_empty_file_is_refused(tmp_path):
    assert "it is empty" in complaint(tmp_path, b"")


GOOD_FILES = [
    (GOOD, 1),
    (GOOD + "\n", 1),
    (f"{GOOD}\r\n{GOOD}\r\n", 2),
    (f"  {GOOD}  \n{GOOD}", 2),
    (line({"role": "system", "content": "s"}, USER, ANSWER), 1),
    (line(USER, {**ANSWER, "weight": 0}, USER, {**ANSWER, "weight": 1}), 1),
    (line({**USER, "name": "Zoë"}, {**ANSWER, "name": None, "weight": None}), 1),
    (line(ANSWER), 1),
    (line({"role": "user", "content": "\U0001f600 \u2028 é\x00 </s>"}, ANSWER), 1),
    (line({"role": "user", "content": "x" * 1_000_000}, ANSWER), 1),
]


@pytest.mark.parametrize(("content", "count"), GOOD_FILES, ids=range(len(GOOD_FILES)))
def test_good_rows_are_counted(tmp_path, content, count):
    assert rows_of(tmp_path, content) == count


def test_check_can_be_given_up(tmp_path):
    path = tmp_path / "train.jsonl"
    path.write_text(f"{GOOD}\n" * (3 * LINES_BETWEEN))
    asked = []

    def go_on() -> None:
        asked.append(len(asked))
        if len(asked) == 2:
            raise Unavailable("stopping", "no")

    with pytest.raises(Unavailable):
        check_file(path, go_on)
    assert asked == [0, 1]
