"""What a self-check found."""

from __future__ import annotations

from typing import Literal

import msgspec

Outcome = Literal["ok", "warning", "failed", "not checked"]


class Finding(msgspec.Struct, frozen=True, kw_only=True):
    """One line of the doctor's report; `next_step` says what to do unless all is well."""

    check: str
    outcome: Outcome
    found: str
    next_step: str | None = None
