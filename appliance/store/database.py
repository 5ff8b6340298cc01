"""Opens SQLite so that a commit that returned survives a power cut, and brings its schema up to date.

WAL with synchronous=FULL: with NORMAL, commits that were acknowledged are lost at a power cut (measured).
Knows nothing of what the tables mean.
"""

from __future__ import annotations

import shutil
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.exc import DatabaseError, OperationalError

from appliance import durable
from appliance.errors import Busy, CorruptState

BUSY_TIMEOUT_MILLISECONDS = 10_000
# SQLite's side files cannot even be opened with less.
LEAST_FREE_BYTES = 1 << 20
_PERHAPS_NO_ROOM = (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN)
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
        self._path = path
        # SQLite lets one write at a time and makes the others poll; a lock lets them in by turns.
        self._writing = threading.Lock()
        try:
            with self._errors_as_ours():
                _migrate(self._engine)
        except (DatabaseError, _UnknownRevision) as exc:
            self._engine.dispose()
            raise CorruptState(
                "unusable_database",
                f"{path} should be this version's database, but: {getattr(exc, 'orig', exc)}",
                next_step="restore the state directory from a backup, or install what wrote it",
            ) from exc
        except BaseException:
            self._engine.dispose()
            raise

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """One atomic transaction; durable once the block is left without an exception.

        Raises OutOfDisk where there is no room, Busy where another process keeps the database locked.
        """
        with self._errors_as_ours(), self._writing, self._engine.begin() as connection:
            yield connection

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """One consistent view of the data; does not wait for writers."""
        options = self._engine.connect().execution_options(read_only=True)
        with options as connection, connection.begin():
            yield connection

    @contextmanager
    def _errors_as_ours(self) -> Iterator[None]:
        try:
            yield
        except OperationalError as exc:
            # The low byte is the kind, the others say more (sqlite.org/rescode.html).
            code = getattr(exc.orig, "sqlite_errorcode", 0) & 0xFF
            if code == sqlite3.SQLITE_FULL or (code in _PERHAPS_NO_ROOM and self._is_disk_full()):
                raise durable.out_of_disk(str(exc.orig)) from exc
            if code == sqlite3.SQLITE_BUSY:
                raise Busy(
                    "database_locked",
                    f"the database should be free within {BUSY_TIMEOUT_MILLISECONDS} ms; it is not",
                    next_step="see which other program has it open",
                ) from exc
            raise

    def _is_disk_full(self) -> bool:
        return shutil.disk_usage(self._path.parent).free < LEAST_FREE_BYTES

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
