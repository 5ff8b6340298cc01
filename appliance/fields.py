"""Turns named values from outside into a struct's fields, finding every fault at once.

msgspec alone stops at the first. Also reads the TOML files that such values come from.
"""

from __future__ import annotations

import os
import stat
import tomllib
from collections.abc import Callable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import msgspec

# A file of settings, prices or a profile has a few kilobytes.
MOST_TOML_BYTES = 1 << 20


def convert(
    values: Mapping[str, Any],
    kind: type[msgspec.Struct],
    *,
    what: str,
    strict: bool = True,
    dec_hook: Callable[[type, Any], Any] | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """The values that suit `kind`'s fields, and a line for each that is unknown or of a wrong type.

    `what` is what a field is called in those lines. Fields that are missing are the caller's matter.
    """
    types = {field.name: field.type for field in msgspec.structs.fields(kind)}
    accepted, faults = {}, []
    for name, value in values.items():
        if name not in types:
            faults.append(f"{name}: there is no such {what}")
            continue
        try:
            accepted[name] = msgspec.convert(value, types[name], strict=strict, dec_hook=dec_hook)
        except msgspec.ValidationError as exc:
            # For a choice, msgspec says what was found, and not what there is.
            allowed = _choices(types[name])
            told = f"should be one of {', '.join(allowed)}" if allowed else str(exc)
            faults.append(f"{name}: {told}, found {value!r}")
    return accepted, faults


def _choices(kind: Any) -> list[str]:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return [str(each.value) for each in kind]
    return [str(each) for each in get_args(kind)] if get_origin(kind) is Literal else []


def read_toml(path: Path) -> dict[str, Any]:
    """A small TOML file from outside; raises OSError, or ValueError that says what is wrong with it."""
    # Opened without waiting: a pipe that nobody writes into would wait for ever.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        if stat.S_ISFIFO(os.fstat(file.fileno()).st_mode):
            raise ValueError("it is a pipe, and not a file")
        # A terminal that has nothing to say gives None.
        data = file.read(MOST_TOML_BYTES + 1) or b""
    if len(data) > MOST_TOML_BYTES:
        raise ValueError(f"it is larger than {MOST_TOML_BYTES >> 20} MiB")
    try:
        return tomllib.loads(data.decode())
    except RecursionError as exc:
        raise ValueError("its values nest too deep") from exc
