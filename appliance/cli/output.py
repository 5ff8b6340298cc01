"""How commands show results: tables for people, JSON for scripts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
from rich.console import Console
from rich.markup import escape
from rich.table import Table

# A model's name may hold what rich takes for an emoji: "ft:base:local:star:…".
console = Console(emoji=False)
# For progress, and for everything when stdout is taken by JSON.
error_console = Console(stderr=True, emoji=False)


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> Table:
    """A table of plain text, wrapped to the terminal: nothing in it is taken as markup."""
    result = Table(title=escape(title), title_justify="left")
    for column in columns:
        result.add_column(column, overflow="fold")
    for row in rows:
        result.add_row(*("" if cell is None else escape(str(cell)) for cell in row))
    return result


def listing(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Lines of aligned columns, as long as they need to be: ids stay whole, and the shell can cut them.

    The last column may be long text; a terminal wraps it without harm.
    """
    cells = [columns, *([("" if cell is None else str(cell)) for cell in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in cells
    )


def local_time(seconds: int | None) -> str:
    """Unix seconds as people here write them; empty for None."""
    return "" if seconds is None else f"{datetime.fromtimestamp(seconds):%Y-%m-%d %H:%M}"


def show(result: Any, json_path: str | None, text: str | Table) -> None:
    """Print `text` for people and write `result` to the JSON path, if one was given."""
    if json_path == "-":
        sys.stdout.write(_encode(result))
        return
    if isinstance(text, str):
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(text)
    if json_path is not None:
        Path(json_path).write_text(_encode(result), encoding="utf-8")


def _encode(result: Any) -> str:
    return msgspec.json.format(msgspec.json.encode(result), indent=2).decode() + "\n"
