"""OpenAI's cursor pages."""

from __future__ import annotations

from typing import Generic, TypeVar

import msgspec

T = TypeVar("T")


class Page(msgspec.Struct, Generic[T]):
    """One page of a list; the next begins behind `last_id`."""

    data: list[T]
    has_more: bool
    first_id: str | None = None
    last_id: str | None = None
    object: str = "list"


class Deleted(msgspec.Struct):
    """What a deletion answers."""

    id: str
    object: str
    deleted: bool = True
