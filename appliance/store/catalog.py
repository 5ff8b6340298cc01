"""The models that can be used: imported bases and finished releases."""

from __future__ import annotations

from sqlalchemy import Connection, delete, or_, select

from appliance.errors import NotFound, WrongState
from appliance.records import BaseModel, Release
from appliance.store import rows
from appliance.store.database import Database
from appliance.store.tables import aliases, base_models, jobs, releases

# Between a model's name and which of its files: a quantization, or the adapter alone.
SEPARATOR = "@"


class CatalogStore:
    """Base models and releases by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def put_base(self, base: BaseModel) -> None:
        """Add a base model, or replace the one of the same name; WrongState if the name is an alias's."""
        with self._database.transaction() as connection:
            _refuse_name_of_alias(connection, base.name)
            connection.execute(delete(base_models).where(base_models.c.name == base.name))
            rows.add(connection, base_models, base)

    def check_base_name(self, name: str) -> None:
        """Raise the WrongState that `put_base` would raise at this moment."""
        with self._database.reading() as connection:
            _refuse_name_of_alias(connection, name)

    def find_base(self, name: str) -> BaseModel | None:
        """The base model of this name, or None."""
        with self._database.reading() as connection:
            return rows.find(connection, base_models, BaseModel, name=name)

    def get_base(self, name: str) -> BaseModel:
        """The base model of this name, or NotFound."""
        base = self.find_base(name)
        if base is None:
            raise no_such_model(name)
        return base

    def find_release(self, name: str) -> Release | None:
        """The release of this name, or None."""
        with self._database.reading() as connection:
            return rows.find(connection, releases, Release, name=name)

    def get(self, name: str) -> BaseModel | Release:
        """The base model or release of this name, or NotFound."""
        found = self.find_base(name) or self.find_release(name)
        if found is None:
            raise no_such_model(name)
        return found

    def delete(self, name: str) -> BaseModel | Release:
        """Forget a model that nothing depends on; returns what it was. Its files are the caller's matter.

        Raises NotFound if there is none, WrongState (`model_in_use`) while an alias means it, a job that has
        not ended builds on it, or, of a base model, while there are releases of it.
        """
        with self._database.transaction() as connection:
            base = rows.find(connection, base_models, BaseModel, name=name)
            found = base or rows.find(connection, releases, Release, name=name)
            if found is None:
                raise no_such_model(name)
            if user := _user(connection, found):
                raise WrongState(
                    "model_in_use",
                    f"a model that is deleted should be of no more use; {name!r} is, for {user}",
                    param="model",
                    next_step="delete that first, or let it end",
                )
            table = releases if base is None else base_models
            connection.execute(delete(table).where(table.c.name == name))
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


def _user(connection: Connection, model: BaseModel | Release) -> str | None:
    """What needs the model, in words."""
    means = or_(
        aliases.c.model == model.name,
        aliases.c.model.startswith(model.name + SEPARATOR, autoescape=True),
    )
    if alias := connection.execute(select(aliases.c.name).where(means)).scalar():
        return f"alias {alias!r}"
    if isinstance(model, BaseModel):
        made = select(releases.c.name).where(releases.c.base_model == model.name)
        if release := connection.execute(made).scalar():
            return f"its fine-tuned model {release!r}"
    unfinished = select(jobs.c.id, jobs.c.plan).where(jobs.c.finished_at.is_(None))
    for job_id, plan in connection.execute(unfinished):
        adapter = None if isinstance(model, BaseModel) else model.adapter_directory
        if plan["base_model"] == model.name or (adapter and plan["initial_adapter"] == adapter):
            return f"job {job_id!r}"
    return None


def _refuse_name_of_alias(connection: Connection, name: str) -> None:
    if rows.find_any(connection, aliases, name=name):
        raise WrongState(
            "alias_exists",
            f"a base model's name should be none of an alias; {name!r} is one",
            param="name",
            next_step="use another name, or delete the alias",
        )


def no_such_model(name: str) -> NotFound:
    """The refusal of a name that neither a base model nor a release has."""
    return NotFound(
        "model_not_found",
        f"The model {name!r} does not exist",
        param="model",
        next_step="GET /v1/models lists what there is",
    )
