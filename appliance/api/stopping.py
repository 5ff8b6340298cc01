"""What is asked while the appliance is being stopped is refused, but for how it is."""

from __future__ import annotations

from typing import Any

from litestar.connection import ASGIConnection
from litestar.handlers import BaseRouteHandler

from appliance.serving.admission import stopping

# Of a route that answers to the end.
TO_THE_END = "to_the_end"


def refuse_when_stopping(
    connection: ASGIConnection[Any, Any, Any, Any], handler: BaseRouteHandler
) -> None:
    """Guard of the whole application; what has passed it may be finished."""
    if connection.app.state.work.stopping and not handler.opt.get(TO_THE_END):
        raise stopping()
