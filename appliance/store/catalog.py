"""The models that can be used: imported bases and finished releases."""

from __future__ import annotations

from sqlalchemy import delete, select

from appliance.errors import NotFound
from appliance.records import BaseModel, Release
from appliance.store import rows
from appliance.store.database import Database
from appliance.store.tables import base_models, releases


class CatalogStore:
    """Base models and releases by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_base(self, base: BaseModel) -> None:
        """Add a base model, or replace the one of the same name."""
        with self._database.transaction() as connection:
            connection.execute(delete(base_models).where(base_models.c.name == base.name))
            rows.add(connection, base_models, base)

    def find_base(self, name: str) -> BaseModel | None:
        """The base model of this name, or None."""
        with self._database.reading() as connection:
            return rows.find(connection, base_models, BaseModel, name=name)

    def get_base(self, name: str) -> BaseModel:
        """The base model of this name, or NotFound."""
        base = self.find_base(name)
        if base is None:
            raise _no_such_model(name)
        return base

    def find_release(self, name: str) -> Release | None:
        """The release of this name, or None."""
        with self._database.reading() as connection:
            return rows.find(connection, releases, Release, name=name)

    def get(self, name: str) -> BaseModel | Release:
        """The base model or release of this name, or NotFound."""
        found = self.find_base(name) or self.find_release(name)
        if found is None:
            raise _no_such_model(name)
        return found

    def bases(self) -> list[BaseModel]:
        """Every base model, oldest first."""
        with self._database.reading() as connection:
            found = connection.execute(select(base_models).order_by(base_models.c.position)).all()
        return [rows.to_record(row, BaseModel) for row in found]

    def releases(self) -> list[Release]:
        """Every release, oldest first."""
        with self._database.reading() as connection:
            found = connection.execute(select(releases).order_by(releases.c.position)).all()
        return [rows.to_record(row, Release) for row in found]


def _no_such_model(name: str) -> NotFound:
    return NotFound(
        "model_not_found",
        f"The model {name!r} does not exist",
        param="model",
        next_step="GET /v1/models lists what there is",
    )
