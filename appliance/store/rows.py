"""Between database rows and records: one mapping for every table."""

from __future__ import annotations

import secrets
import string
from typing import Any, Literal, TypeVar

import msgspec
from sqlalchemy import Connection, Row, Table, func, insert, select
from sqlalchemy.sql import Select

R = TypeVar("R", bound=msgspec.Struct)
Order = Literal["asc", "desc"]
_ALPHABET = string.ascii_letters + string.digits
# 24 characters of 62 carry 142 bits: ids never collide and cannot be guessed.
ID_LENGTH = 24


def new_id(prefix: str, length: int = ID_LENGTH) -> str:
    """A fresh identifier in OpenAI's style, such as "file-" and random letters and digits."""
    return prefix + "".join(secrets.choice(_ALPHABET) for _ in range(length))


def prepare(*kinds: type[msgspec.Struct]) -> None:
    """Let msgspec look at records before several threads use them.

    It would do so at the first use, and a second thread that comes in the middle of that reads a null
    pointer: the process dies (msgspec 0.22; a test shows it).
    """
    for kind in kinds:
        msgspec.json.Decoder(kind)


def to_record(row: Row[Any], kind: type[R]) -> R:
    """A database row as a record."""
    # SQLAlchemy's column names are a subclass of str, which msgspec does not take for one.
    return msgspec.convert({str(name): value for name, value in row._mapping.items()}, kind)


def add(connection: Connection, table: Table, record: msgspec.Struct) -> None:
    """Insert a record into its table."""
    connection.execute(insert(table).values(**columns(record)))


def columns(record: msgspec.Struct) -> dict[str, Any]:
    """A record as column values."""
    return {name: msgspec.to_builtins(getattr(record, name)) for name in record.__struct_fields__}


def find(connection: Connection, table: Table, kind: type[R], **where: Any) -> R | None:
    """The one record whose columns have these values, or None."""
    row = connection.execute(select(table).filter_by(**where)).one_or_none()
    return None if row is None else to_record(row, kind)


def page(
    connection: Connection,
    query: Select[Any],
    table: Table,
    kind: type[R],
    *,
    after: str | None,
    limit: int,
    order: Order,
) -> tuple[list[R], bool]:
    """Up to `limit` records of `query` behind the one with id `after`, and whether more follow.

    An `after` that is not there gives an empty page, as one that was deleted meanwhile would.
    """
    ascending = order == "asc"
    if after is not None:
        start = select(table.c.position).where(table.c.id == after).scalar_subquery()
        query = query.where(table.c.position > start if ascending else table.c.position < start)
    column = table.c.position if ascending else table.c.position.desc()
    found = connection.execute(query.order_by(column).limit(limit + 1)).all()
    return [to_record(row, kind) for row in found[:limit]], len(found) > limit


def count_by(connection: Connection, table: Table, column: str) -> dict[str, int]:
    """How many rows have each value of `column`."""
    counted = select(table.c[column], func.count()).group_by(table.c[column])
    return {str(row[0]): int(row[1]) for row in connection.execute(counted)}


def find_any(connection: Connection, table: Table, **where: Any) -> bool:
    """Whether any row has these values."""
    return connection.execute(select(table).filter_by(**where).limit(1)).first() is not None
