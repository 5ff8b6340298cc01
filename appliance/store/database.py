"""Opens SQLite so that a commit that returned survives a power cut, and brings its schema up to date.

WAL with synchronous=FULL: with NORMAL, commits that were acknowledged are lost at a power cut (measured).
Knows nothing of what the tables mean.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError

from appliance import durable
from appliance.errors import CorruptState

BUSY_TIMEOUT_MILLISECONDS = 10_000
MIGRATIONS = Path(__file__).parent / "migrations"


class Database:
    """The one SQLite file. Methods may be called from any thread."""

    def __init__(self, path: Path) -> None:
        self._engine = create_engine(
            f"sqlite:///{path}",
            json_serializer=lambda value: msgspec.json.encode(value).decode(),
            json_deserializer=msgspec.json.decode,
        )
        event.listen(self._engine, "connect", _configure)
        event.listen(self._engine, "begin", _begin)
        try:
            _migrate(self._engine)
        except (DatabaseError, _UnknownRevision) as exc:
            self._engine.dispose()
            raise CorruptState(
                "unusable_database",
                f"{path} should be this version's database, but: {getattr(exc, 'orig', exc)}",
                next_step="restore the state directory from a backup, or install what wrote it",
            ) from exc

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One atomic transaction; durable once the block is left without an exception."""
        try:
            with self._engine.begin() as connection:
                yield connection
        except OperationalError as exc:
            if getattr(exc.orig, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
                raise
            raise durable.out_of_disk(str(exc.orig)) from exc

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of the data; does not wait for writers."""
        options = self._engine.connect().execution_options(read_only=True)
        with options as connection, connection.begin():
            yield connection

    def close(self) -> None:
        """Close all connections."""
        self._engine.dispose()


def _configure(connection: Any, _record: object) -> None:
    # sqlite3's own transaction handling starts transactions late; SQLAlchemy's begin event does it
    # instead (SQLAlchemy's documentation, "SQLite: Serializable isolation / Savepoints").
    connection.isolation_level = None
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA foreign_keys=ON")
    connection.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MILLISECONDS}")


def _begin(connection: Connection) -> None:
    # A transaction that reads first and writes later can fail to upgrade its lock; taking the write
    # lock at once makes it wait instead.
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


class _UnknownRevision(Exception):
    """The database of a newer version, whose migrations are not known here."""


def _migrate(engine: Engine) -> None:
    # Only needed here, and not small: imported when used.
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as exc:
            raise _UnknownRevision(exc) from exc
