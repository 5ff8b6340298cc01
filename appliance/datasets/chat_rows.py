"""Checks a JSONL file of chat examples in OpenAI's format, line by line, and names every fault.

One row: {"messages": [{"role", "content", "name"?, "weight"?}, ...]}. Knows nothing of tokens or models:
how long a row is for a model, the training child finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from appliance.errors import UNDECODABLE, InvalidInput
from appliance.records import CheckedRows

# A line longer than this is no chat example, whatever it is.
MAX_LINE_BYTES = 4 << 20
# How many are checked before anybody is asked whether to go on: some milliseconds.
LINES_BETWEEN = 1000
MAX_REPORTED_FAULTS = 20
# msgspec quotes a wrong value in full.
MAX_FAULT_CHARACTERS = 200


class Message(msgspec.Struct, forbid_unknown_fields=True):
    """One turn of a training conversation."""

    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Meta(min_length=1)]
    name: str | None = None
    weight: Literal[0, 1] | None = None


class ChatRow(msgspec.Struct, forbid_unknown_fields=True):
    """One training example."""

    messages: Annotated[list[Message], Meta(min_length=1)]


_decoder = msgspec.json.Decoder(ChatRow)


def check_file(path: Path, go_on: Callable[[], None] = lambda: None) -> CheckedRows:
    """Check every line.

    Raises InvalidInput that lists the first faults by line number and field. `go_on` is called now and then,
    and ends the check by raising.
    """
    faults: list[str] = []
    row_count = fault_count = longest_bytes = 0
    for number, line in _numbered_lines(path):
        row_count += 1
        if row_count % LINES_BETWEEN == 0:
            go_on()
        longest_bytes = max(longest_bytes, len(line))
        fault = _fault_of(line)
        if fault is not None:
            fault_count += 1
            if len(faults) < MAX_REPORTED_FAULTS:
                faults.append(f"line {number}: {fault[:MAX_FAULT_CHARACTERS]}")
    if fault_count:
        more = fault_count - len(faults)
        raise InvalidInput(
            "invalid_jsonl",
            f"every line should be one chat example, but {fault_count} of {row_count} are not: "
            + "; ".join(faults)
            + (f"; and {more} more" if more else ""),
            param="file",
            next_step="correct these lines and upload the file again; nothing was stored",
        )
    if row_count == 0:
        raise InvalidInput(
            "empty_file",
            "the file should hold chat examples, one a line; it is empty",
            param="file",
        )
    return CheckedRows(rows=row_count, longest_row_bytes=longest_bytes)


def _numbered_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    with path.open("rb") as file:
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            yield number, line
            while len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                line = file.readline(MAX_LINE_BYTES + 1)
                if not line:
                    return


def _fault_of(line: bytes) -> str | None:
    if len(line) > MAX_LINE_BYTES:
        return f"longer than {MAX_LINE_BYTES} bytes"
    if not line.strip():
        return "empty"
    try:
        row = _decoder.decode(line)
    except UNDECODABLE as exc:
        return _say_field(str(exc))
    return _turn_fault(row.messages)


def _turn_fault(messages: list[Message]) -> str | None:
    for index, message in enumerate(messages):
        field = f"messages[{index}]"
        if message.role == "system" and index > 0:
            return f"{field}.role: a system message should come first"
        if message.weight is not None and message.role != "assistant":
            return f"{field}.weight: only assistant messages have a weight"
    if messages[-1].role != "assistant":
        field = f"messages[{len(messages) - 1}].role"
        return f"{field}: the last message should be the assistant's, found {messages[-1].role!r}"
    if all(message.weight == 0 for message in messages if message.role == "assistant"):
        return "messages: every assistant message has weight 0, so there is nothing to learn"
    return None


def _say_field(message: str) -> str:
    # msgspec says "Expected ... - at `$.messages[0].role`"; the field is what a person looks for first.
    what, separator, where = message.rpartition(" - at ")
    if not separator:
        return message
    return f"{where.strip('`').removeprefix('$').removeprefix('.') or 'row'}: {what}"
