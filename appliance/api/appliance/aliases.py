"""`/api/v1/aliases`: names that apps call and that outlive a retraining. Changes need the admin key."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, put
from litestar.status_codes import HTTP_200_OK
from msgspec import Meta

from appliance.api import auth
from appliance.serving.aliases import Aliases
from appliance.store.aliases import Alias
from appliance.store.store import Store


class Meaning(msgspec.Struct, forbid_unknown_fields=True):
    """What an alias is to mean: a base model or a fine-tuned one, `NAME` or `NAME@VARIANT`."""

    model: Annotated[str, Meta(min_length=1, max_length=256)]


class AliasList(msgspec.Struct):
    """Every alias."""

    data: list[Alias]
    object: str = "list"


class AliasesController(Controller):
    """Aliases of models."""

    path = "/api/v1/aliases"
    tags = ("aliases",)

    @get("/", operation_id="listAliases", sync_to_thread=True)
    def list(self, store: Store) -> AliasList:
        """List aliases, oldest first."""
        return AliasList(store.aliases.list())

    # A slash in a name is told as a bad name, not as a bad address.
    @get("/{name:path}", operation_id="retrieveAlias", sync_to_thread=True)
    def retrieve(self, store: Store, name: str) -> Alias:
        """Describe one alias."""
        return store.aliases.get(name.removeprefix("/"))

    @put("/{name:path}", operation_id="setAlias", opt={auth.ADMIN: True})
    async def set(self, data: Meaning, aliases: Aliases, name: str) -> Alias:
        """Make an alias, or change what it means without a failed request."""
        return await aliases.put(name.removeprefix("/"), data.model)

    @delete(
        "/{name:path}",
        operation_id="deleteAlias",
        status_code=HTTP_200_OK,
        opt={auth.ADMIN: True},
    )
    async def delete(self, aliases: Aliases, name: str) -> dict[str, str | bool]:
        """Forget an alias; the model stays."""
        name = name.removeprefix("/")
        await aliases.delete(name)
        return {"name": name, "deleted": True}
