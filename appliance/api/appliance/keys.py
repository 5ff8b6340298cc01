"""`/api/v1/keys`: the API keys of the apps that may call. Needs the admin key."""

from __future__ import annotations

from typing import Annotated

import msgspec
from litestar import Controller, delete, get, post
from litestar.status_codes import HTTP_200_OK
from msgspec import Meta

from appliance.api import auth
from appliance.records import ApiKey
from appliance.store.store import Store


class NewKey(msgspec.Struct, forbid_unknown_fields=True):
    """What a key is for."""

    name: Annotated[str, Meta(pattern=r"^[A-Za-z0-9 ._-]{1,64}$(?!\n)")]


class KeyObject(msgspec.Struct):
    """A key without its secret."""

    id: str
    name: str
    created_at: int
    admin: bool


class CreatedKey(msgspec.Struct):
    """A key with its secret, which is shown this once."""

    id: str
    name: str
    created_at: int
    admin: bool
    secret: str


class KeyList(msgspec.Struct):
    """Every key."""

    data: list[KeyObject]
    object: str = "list"


def to_wire(key: ApiKey) -> KeyObject:
    """A key as it may be shown."""
    return KeyObject(key.id, key.name, key.created_at, key.admin)


class KeysController(Controller):
    """API keys."""

    path = "/api/v1/keys"
    tags = ("keys",)
    opt = {auth.ADMIN: True}  # noqa: RUF012  Litestar's own class attribute

    @get("/", operation_id="listKeys", sync_to_thread=True)
    def list(self, store: Store) -> KeyList:
        """List keys, oldest first."""
        return KeyList([to_wire(key) for key in store.keys.list()])

    @post("/", operation_id="createKey", status_code=HTTP_200_OK, sync_to_thread=True)
    def create(self, data: NewKey, store: Store) -> CreatedKey:
        """Make a key for an app."""
        key, secret = store.keys.create(data.name)
        return CreatedKey(key.id, key.name, key.created_at, key.admin, secret)

    @delete("/{key_id:str}", operation_id="deleteKey", status_code=HTTP_200_OK, sync_to_thread=True)
    def delete(self, store: Store, key_id: str) -> dict[str, str | bool]:
        """Revoke a key; it stops working at once."""
        store.keys.revoke(key_id)
        return {"id": key_id, "deleted": True}
