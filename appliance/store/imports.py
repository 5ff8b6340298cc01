"""Imports of base models that were asked for over the API: what is wanted, and how it ended."""

from __future__ import annotations

import time

from sqlalchemy import select, update

from appliance.errors import NotFound, WrongState
from appliance.records import JobError
from appliance.store import rows
from appliance.store.database import Database
from appliance.store.tables import imports
from appliance.upload_records import BaseImport, ImportStatus

_UNFINISHED = (ImportStatus.QUEUED.value, ImportStatus.RUNNING.value)


class ImportStore:
    """Imports; one that has ended never changes again."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, wanted: BaseImport) -> None:
        """Store a new one."""
        with self._database.transaction() as connection:
            rows.add(connection, imports, wanted)

    def get(self, import_id: str) -> BaseImport:
        """The import, or NotFound."""
        with self._database.reading() as connection:
            found = rows.find(connection, imports, BaseImport, id=import_id)
        if found is None:
            raise NotFound("import_not_found", f"No such import: {import_id!r}", param="import_id")
        return found

    def page(self, *, after: str | None, limit: int) -> tuple[list[BaseImport], bool]:
        """One page of imports, newest first, and whether more follow."""
        with self._database.reading() as connection:
            return rows.page(
                connection,
                select(imports),
                imports,
                BaseImport,
                after=after,
                limit=limit,
                order="desc",
            )

    def unfinished(self) -> list[BaseImport]:
        """Every import that has not ended, oldest first."""
        query = select(imports).where(imports.c.status.in_(_UNFINISHED))
        with self._database.reading() as connection:
            found = connection.execute(query.order_by(imports.c.position)).all()
        return [rows.to_record(row, BaseImport) for row in found]

    def move(
        self, import_id: str, status: ImportStatus, error: JobError | None = None
    ) -> BaseImport:
        """Change the status; raises WrongState if it has ended. Returns the import as it is now."""
        changes: dict[str, object] = {"status": status.value}
        if status.value not in _UNFINISHED:
            changes["finished_at"] = int(time.time())
        if error is not None:
            changes["error"] = error
        with self._database.transaction() as connection:
            done = connection.execute(
                update(imports)
                .where(imports.c.id == import_id, imports.c.status.in_(_UNFINISHED))
                .values(**changes)
            )
        found = self.get(import_id)
        if done.rowcount == 0:
            raise WrongState(
                "import_ended",
                f"the import should not have ended; it is {found.status.value}",
                param="import_id",
            )
        return found
