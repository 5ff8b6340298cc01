"""Turns named values from outside into a struct's fields, finding every fault at once.

msgspec alone stops at the first.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec


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
            faults.append(f"{name}: {exc}, found {value!r}")
    return accepted, faults
