"""Names that apps call, and the model that each means now.

An alias, a base model and a release never share a name: what would break that is refused in the transaction
that would write it, here and in `catalog`.
"""

from __future__ import annotations

import re
import time

import msgspec
from sqlalchemy import Connection, delete, select, update

from appliance.errors import InvalidInput, NotFound, WrongState
from appliance.store import rows
from appliance.store.catalog import SEPARATOR, no_such_model
from appliance.store.database import Database
from appliance.store.tables import aliases, base_models, releases

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Alias(msgspec.Struct, frozen=True, kw_only=True):
    """A name that apps call, and the model that it means now: `NAME` or `NAME@VARIANT`."""

    name: str
    created_at: int
    changed_at: int
    model: str


class AliasStore:
    """Aliases by name."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def check(self, name: str, model: str) -> Alias | None:
        """Raise what `put` would raise at this moment; gives the alias as it is, or None."""
        with self._database.reading() as connection:
            _check(connection, name, model)
            return rows.find(connection, aliases, Alias, name=name)

    def put(self, name: str, model: str) -> Alias:
        """Make an alias, or change what it means; durable when this returns.

        Raises InvalidInput for a bad name or if `model` is an alias, WrongState if the name is a model's,
        NotFound if there is no such model. Which variants a model has is the caller's matter.
        """
        with self._database.transaction() as connection:
            _check(connection, name, model)
            before = rows.find(connection, aliases, Alias, name=name)
            now = int(time.time())
            if before is None:
                alias = Alias(name=name, created_at=now, changed_at=now, model=model)
                rows.add(connection, aliases, alias)
            elif before.model != model:
                changes = {"model": model, "changed_at": now}
                connection.execute(update(aliases).where(aliases.c.name == name).values(**changes))
            return _get(connection, name)

    def get(self, name: str) -> Alias:
        """The alias, or NotFound."""
        with self._database.reading() as connection:
            return _get(connection, name)

    def find(self, name: str) -> Alias | None:
        """The alias, or None."""
        with self._database.reading() as connection:
            return rows.find(connection, aliases, Alias, name=name)

    def list(self) -> list[Alias]:
        """Every alias, oldest first."""
        with self._database.reading() as connection:
            found = connection.execute(select(aliases).order_by(aliases.c.position)).all()
        return [rows.to_record(row, Alias) for row in found]

    def delete(self, name: str) -> None:
        """Forget an alias, or raise NotFound; the model stays."""
        with self._database.transaction() as connection:
            _get(connection, name)
            connection.execute(delete(aliases).where(aliases.c.name == name))

    def resolve(self, name: str) -> str:
        """What is to be asked for when an app asks for `name`, which may be `ALIAS` or `ALIAS@VARIANT`.

        A name that is none of an alias means itself, whether such a model exists or not. Raises InvalidInput
        where the alias has a variant already.
        """
        stem, separator, variant = name.partition(SEPARATOR)
        alias = self.find(stem)
        if alias is None:
            return name
        if separator and SEPARATOR in alias.model:
            raise InvalidInput(
                "variant_given_twice",
                f"{stem!r} means {alias.model!r}, so it should be asked for by its name alone; "
                f"found {name!r}",
                param="model",
                next_step=f"ask for {stem!r}",
            )
        return alias.model + separator + variant

    def model_of(self, name: str) -> str:
        """The model that an alias means, without a variant; any other name as it is."""
        alias = self.find(name)
        return name if alias is None else alias.model.partition(SEPARATOR)[0]


def _check(connection: Connection, name: str, model: str) -> None:
    if not NAME.fullmatch(name):
        raise InvalidInput(
            "invalid_alias_name",
            f"an alias's name should match {NAME.pattern}; found {name[:200]!r}",
            param="name",
        )
    if _is_model(connection, name):
        raise WrongState(
            "model_exists",
            f"an alias's name should be none of a model; {name!r} is one",
            param="name",
            next_step="use another name",
        )
    stem = model.partition(SEPARATOR)[0]
    other = rows.find(connection, aliases, Alias, name=stem)
    if other is not None:
        raise InvalidInput(
            "alias_of_alias",
            f"an alias should mean a model; {stem!r} is an alias itself, of {other.model!r}",
            param="model",
            next_step=f"give {other.model!r}",
        )
    if not _is_model(connection, stem):
        raise no_such_model(stem)


def _is_model(connection: Connection, name: str) -> bool:
    return rows.find_any(connection, base_models, name=name) or rows.find_any(
        connection, releases, name=name
    )


def _get(connection: Connection, name: str) -> Alias:
    alias = rows.find(connection, aliases, Alias, name=name)
    if alias is None:
        raise NotFound(
            "alias_not_found",
            f"No such alias: {name!r}",
            param="name",
            next_step="GET /api/v1/aliases lists what there is",
        )
    return alias
