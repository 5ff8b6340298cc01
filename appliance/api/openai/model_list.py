"""`/v1/models`: what can be asked and trained."""

from __future__ import annotations

import msgspec
from litestar import Controller, delete, get
from litestar.status_codes import HTTP_200_OK

from appliance.api import auth
from appliance.api.openai.paging import Deleted
from appliance.jobs import deletion
from appliance.records import BaseModel, Release
from appliance.serving.router import Router
from appliance.store.aliases import Alias
from appliance.store.store import Store


class ModelObject(msgspec.Struct):
    """OpenAI's Model, with what an alias means beside it; null for a model itself."""

    id: str
    created: int
    owned_by: str
    object: str = "model"
    alias_of: str | None = None


class ModelList(msgspec.Struct):
    """OpenAI's list of models, which has no pages."""

    data: list[ModelObject]
    object: str = "list"


def to_wire(model: BaseModel | Release) -> ModelObject:
    """A base model or release as OpenAI shows it."""
    return ModelObject(
        id=model.name,
        created=model.created_at,
        owned_by="local" if isinstance(model, Release) else model.source,
    )


def alias_to_wire(alias: Alias) -> ModelObject:
    """An alias as a model among others."""
    return ModelObject(alias.name, alias.created_at, "local", alias_of=alias.model)


class ModelsController(Controller):
    """OpenAI's models resource."""

    path = "/v1/models"
    tags = ("models",)

    @get("/", operation_id="listModels", sync_to_thread=True)
    def list(self, store: Store) -> ModelList:
        """List base models, then fine-tuned ones, then aliases."""
        models: list[BaseModel | Release] = [*store.catalog.bases(), *store.catalog.releases()]
        aliases = [alias_to_wire(alias) for alias in store.aliases.list()]
        return ModelList([*(to_wire(model) for model in models), *aliases])

    # A name may hold slashes, which clients send percent-encoded.
    @get("/{name:path}", operation_id="retrieveModel", sync_to_thread=True)
    def retrieve(self, store: Store, name: str) -> ModelObject:
        """Describe one model, or alias of one."""
        name = name.removeprefix("/")
        alias = store.aliases.find(name)
        return to_wire(store.catalog.get(name)) if alias is None else alias_to_wire(alias)

    @delete(
        "/{name:path}",
        operation_id="deleteModel",
        status_code=HTTP_200_OK,
        opt={auth.ADMIN: True},
    )
    async def delete(self, store: Store, router: Router, name: str) -> Deleted:
        """Delete a model that nothing depends on, with all its files."""
        name = name.removeprefix("/")
        await deletion.delete(store, router.unload, name)
        return Deleted(id=name, object="model")
