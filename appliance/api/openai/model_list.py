"""`/v1/models`: what can be asked and trained."""

from __future__ import annotations

import msgspec
from litestar import Controller, get

from appliance.records import BaseModel, Release
from appliance.store.store import Store


class ModelObject(msgspec.Struct):
    """OpenAI's Model."""

    id: str
    created: int
    owned_by: str
    object: str = "model"


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


class ModelsController(Controller):
    """OpenAI's models resource."""

    path = "/v1/models"
    tags = ("models",)

    @get("/", operation_id="listModels", sync_to_thread=True)
    def list(self, store: Store) -> ModelList:
        """List base models, then fine-tuned ones."""
        models: list[BaseModel | Release] = [*store.catalog.bases(), *store.catalog.releases()]
        return ModelList([to_wire(model) for model in models])

    # A name may hold slashes, which clients send percent-encoded.
    @get("/{name:path}", operation_id="retrieveModel", sync_to_thread=True)
    def retrieve(self, store: Store, name: str) -> ModelObject:
        """Describe one model."""
        return to_wire(store.catalog.get(name.removeprefix("/")))
