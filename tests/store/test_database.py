"""The schema is what the tables say, on disk and durable, and what is no database of ours is refused."""

from __future__ import annotations

import contextlib
import sqlite3
import threading

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, text

from appliance.errors import Busy, ConfigurationError, CorruptState, OutOfDisk
from appliance.store import database as database_module
from appliance.store.database import MIGRATIONS, Database
from appliance.store.store import Store
from appliance.store.tables import api_keys, metadata


@pytest.fixture
def database(tmp_path):
    opened = Database(tmp_path / "appliance.db")
    yield opened
    opened.close()


def test_migrations_give_exactly_the_tables(database):
    with database.reading() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        assert compare_metadata(context, metadata) == []
    assert len(metadata.tables) == 10


def test_difference_between_migrations_and_tables_would_be_seen(database):
    with database.transaction() as connection:
        connection.execute(text("ALTER TABLE files ADD COLUMN surprise INTEGER"))
        connection.execute(text("DROP INDEX ix_jobs_status"))
        context = MigrationContext.configure(connection)
        assert len(compare_metadata(context, metadata)) == 2


def test_migrations_are_one_unbroken_line():
    revisions = list(ScriptDirectory(str(MIGRATIONS)).walk_revisions())
    assert len(revisions) >= 1
    assert len(list(MIGRATIONS.glob("versions/m*.py"))) == len(revisions)
    assert revisions[-1].down_revision is None


def test_rows_of_the_first_schema_are_kept(tmp_path):
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    engine = create_engine(f"sqlite:///{tmp_path / 'appliance.db'}")
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0001")
        old = "'file-1', 1, 'f.jsonl', 'fine-tune', 9, 'digest', 3"
        names = "id, created_at, filename, purpose, bytes, sha256, rows"
        connection.execute(text(f"INSERT INTO files ({names}) VALUES ({old})"))
    engine.dispose()
    opened = Database(tmp_path / "appliance.db")
    with opened.reading() as connection:
        (found,) = connection.execute(text("SELECT id, rows, longest_row_bytes FROM files"))
    opened.close()
    assert tuple(found) == ("file-1", 3, None)


def test_opening_again_keeps_the_rows(tmp_path):
    for expected in (0, 1):
        opened = Store(tmp_path / "state")
        assert len(opened.keys.list()) == expected
        opened.keys.create("app")
        opened.close()


def test_every_connection_is_durable_and_checks_references(database):
    seen = []

    def look() -> None:
        with database.reading() as connection:
            names = ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
            seen.append(tuple(connection.execute(text(f"PRAGMA {n}")).scalar() for n in names))
            barrier.wait(10)

    # At the same time, so that each thread needs a connection of its own.
    barrier = threading.Barrier(5)
    threads = [threading.Thread(target=look) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    full = 2
    assert seen == [("wal", full, 1, 10_000)] * 5


def test_foreign_key_is_enforced(database):
    with pytest.raises(Exception, match="FOREIGN KEY"), database.transaction() as connection:
        connection.execute(
            text(
                "INSERT INTO job_events (id, job_id, created_at, key, level, message) "
                "VALUES ('e', 'no such job', 1, 'k', 'info', 'm')"
            )
        )


def test_failed_transaction_leaves_nothing(database):
    def insert(connection) -> None:
        values = {"id": "k", "name": "n", "created_at": 1, "sha256": "s", "admin": False}
        connection.execute(api_keys.insert().values(**values))

    with pytest.raises(RuntimeError), database.transaction() as connection:
        insert(connection)
        raise RuntimeError
    with database.reading() as connection:
        assert connection.execute(api_keys.select()).all() == []


def test_reader_does_not_wait_for_a_writer(database):
    with database.transaction(), database.reading() as connection:
        assert connection.execute(api_keys.select()).all() == []


def test_concurrent_writers_lose_nothing(tmp_path):
    # Two openings, as the daemon and the command line are.
    stores = [Store(tmp_path / "state") for _ in range(2)]

    def write(number: int) -> None:
        for index in range(10):
            stores[number % 2].keys.create(f"{number}.{index}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    names = {key.name for key in stores[0].keys.list()}
    assert len(names) == 60
    for each in stores:
        each.close()


@pytest.mark.parametrize(
    "content", [b"not a database at all" * 100, b"SQLite format 3\x00" + b"\xff" * 4096]
)
def test_file_that_is_no_database_is_corrupt_state(tmp_path, content):
    (tmp_path / "appliance.db").write_bytes(content)
    with pytest.raises(CorruptState) as caught:
        Database(tmp_path / "appliance.db")
    assert caught.value.code == "unusable_database"
    assert (tmp_path / "appliance.db").read_bytes() == content


def test_database_of_a_newer_version_is_refused_and_left_alone(tmp_path):
    Database(tmp_path / "appliance.db").close()
    with sqlite3.connect(tmp_path / "appliance.db") as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.close()
    with pytest.raises(CorruptState) as caught:
        Database(tmp_path / "appliance.db")
    assert caught.value.code == "unusable_database"
    assert "9999" in caught.value.message


@pytest.mark.parametrize("name", ["state", "state/below"])
def test_state_directory_that_cannot_be_is_named(tmp_path, name):
    (tmp_path / "state").write_text("a file")
    with pytest.raises(ConfigurationError) as caught:
        Store(tmp_path / name)
    assert caught.value.code == "unusable_state_dir"
    assert str(tmp_path / name) in caught.value.message


def test_state_directory_is_for_its_owner_alone(store, state_dir):
    assert state_dir.stat().st_mode & 0o777 == 0o700


def test_full_disk_has_its_own_error_and_goes_away(database):
    with database.reading() as connection:
        (pages,) = connection.exec_driver_sql("PRAGMA page_count").one()
    with pytest.raises(OutOfDisk, match="disk is full"), database.transaction() as connection:
        connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
        connection.execute(text("CREATE TABLE ballast (bytes BLOB)"))
        connection.execute(text("INSERT INTO ballast VALUES (zeroblob(1000000))"))
    with database.transaction() as connection:
        connection.exec_driver_sql("PRAGMA max_page_count=1000000")
        connection.execute(text("CREATE TABLE ballast (bytes BLOB)"))
        connection.execute(text("INSERT INTO ballast VALUES (zeroblob(1000000))"))


def test_database_that_another_program_keeps_locked_is_busy_and_not_broken(tmp_path, monkeypatch):
    monkeypatch.setattr(database_module, "BUSY_TIMEOUT_MILLISECONDS", 50)
    opened = Database(tmp_path / "appliance.db")
    other = sqlite3.connect(tmp_path / "appliance.db", isolation_level=None)
    with contextlib.closing(opened), contextlib.closing(other):
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(Busy), opened.transaction():
            raise AssertionError("the lock should not be had")
        other.execute("ROLLBACK")
        with opened.transaction() as connection:
            assert connection.execute(text("SELECT 1")).scalar() == 1
