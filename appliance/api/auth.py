"""Who may call: every route needs a key, unless the route itself says that it is public."""

from __future__ import annotations

import asyncio
from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from appliance.errors import NotAuthenticated, NotPermitted
from appliance.store.store import Store

PUBLIC = "public"
ADMIN = "admin"
_SCHEME = "bearer "


async def require_key(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Guard of the whole application; judges the routed handler, never the URL's text."""
    if handler.opt.get(PUBLIC):
        return
    secret = _bearer(connection.headers.get("authorization"))
    store: Store = connection.app.state.store
    key = await asyncio.to_thread(store.keys.find, secret)
    if key is None:
        raise NotAuthenticated("invalid_api_key", "Incorrect API key provided")
    # Litestar's place for who asks: `request.auth`.
    connection.scope["auth"] = key
    if handler.opt.get(ADMIN) and not key.admin:
        raise NotPermitted("insufficient_permissions", "this needs the admin key")


def _bearer(header: str | None) -> str:
    if header is None or not header.lower().startswith(_SCHEME):
        raise NotAuthenticated(
            "missing_api_key",
            "You didn't provide an API key",
            next_step="send it as a header: Authorization: Bearer YOUR_KEY",
        )
    return header[len(_SCHEME) :].strip()
