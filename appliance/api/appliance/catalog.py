"""`/api/v1/models`: what the models are: source, licence, digest, files."""

from __future__ import annotations

import msgspec
from litestar import Controller, get

from appliance.records import BaseModel, Release
from appliance.store.store import Store


class ModelDetails(msgspec.Struct):
    """Everything that is known of the models on this box."""

    base_models: list[BaseModel]
    releases: list[Release]


class ModelDetailsController(Controller):
    """The catalogue in full."""

    path = "/api/v1/models"
    tags = ("models",)

    @get("/", operation_id="listModelDetails", sync_to_thread=True)
    def list(self, store: Store) -> ModelDetails:
        """Base models with source and licence, and releases with base and files."""
        return ModelDetails(store.catalog.bases(), store.catalog.releases())
