"""Small files of /proc and /sys, of which any may be missing."""

from __future__ import annotations

from pathlib import Path

# Python refuses numbers of thousands; the kernel has none beyond 64 bits.
MOST_DIGITS = 32


def text(path: Path) -> str:
    """What the file holds; empty if it cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def number(path: Path) -> int | None:
    """The number in a file; None for "max", for a negative one, and where there is no such file."""
    found = text(path).strip()
    return int(found) if found.isdecimal() and len(found) < MOST_DIGITS else None
