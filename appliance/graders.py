"""Pure scoring of an answer against a reference."""

from __future__ import annotations

import json
from typing import Any


def json_exact_match(answer: str, reference: str) -> bool:
    """Whether both are the same JSON value; order of keys and white space do not count."""
    try:
        return _same(json.loads(answer), json.loads(reference))
    except (ValueError, RecursionError):
        # An answer may be anything, a hundred thousand opening brackets included.
        return False


def _same(left: Any, right: Any) -> bool:
    # Python holds True and 1 for equal; JSON does not.
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(_same, left, right))
    return bool(left == right)
