"""`/healthz`: the process answers. `/readyz`: it can also do its work."""

from __future__ import annotations

import shutil

import msgspec
from litestar import Response, get
from litestar.datastructures import State
from litestar.status_codes import HTTP_200_OK, HTTP_503_SERVICE_UNAVAILABLE

from appliance import __version__
from appliance.api import auth, stopping
from appliance.store.store import Store

# Below this a checkpoint or a database commit may fail.
MIN_FREE_BYTES = 1 << 30


class Health(msgspec.Struct):
    """That the daemon is there."""

    status: str
    version: str


class Readiness(msgspec.Struct):
    """Whether work is accepted, and if not, why."""

    status: str
    checks: dict[str, str]


@get(
    "/healthz",
    operation_id="getHealth",
    tags=["health"],
    sync_to_thread=False,
    opt={auth.PUBLIC: True, stopping.TO_THE_END: True},
)
def healthz() -> Health:
    """Always answers while the event loop runs; needs no key and tells nothing else."""
    return Health("ok", __version__)


@get(
    "/readyz",
    operation_id="getReadiness",
    tags=["health"],
    sync_to_thread=True,
    opt={stopping.TO_THE_END: True},
)
def readyz(store: Store, state: State) -> Response[Readiness]:
    """Look at the database, the disk and the models, and whether it is being stopped."""
    free_bytes = shutil.disk_usage(store.directory).free
    checks = {
        "daemon": "is being stopped" if state.work.stopping else "ok",
        "database": "ok" if store.jobs.count_by_status() is not None else "no answer",
        "disk": "ok" if free_bytes >= MIN_FREE_BYTES else f"only {free_bytes} bytes free",
        "models": "ok" if store.catalog.bases() else "no base model has been imported",
    }
    ready = all(value == "ok" for value in checks.values())
    return Response(
        Readiness("ok" if ready else "not ready", checks),
        status_code=HTTP_200_OK if ready else HTTP_503_SERVICE_UNAVAILABLE,
    )
