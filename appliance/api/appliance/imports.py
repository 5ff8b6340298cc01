"""`/api/v1/imports`: base models from files that were uploaded before."""

from __future__ import annotations

import asyncio
from typing import Annotated

import msgspec
from litestar import Controller, get, post
from litestar.params import Parameter
from litestar.status_codes import HTTP_200_OK

from appliance.api import auth
from appliance.api.openai.paging import Page
from appliance.jobs import import_request
from appliance.jobs.import_queue import ImportQueue
from appliance.jobs.import_request import ImportRequest
from appliance.records import JobError
from appliance.store.store import Store
from appliance.upload_records import BaseImport, ImportStatus


class ImportObject(msgspec.Struct, kw_only=True):
    """An import; `progress` is what it said last, while it is under way."""

    id: str
    created_at: int
    finished_at: int | None
    name: str
    licence: str
    origin: str
    filenames: tuple[str, ...]
    status: str
    progress: str | None
    error: JobError | None
    object: str = "import"


def to_wire(wanted: BaseImport, imports: ImportQueue) -> ImportObject:
    """An import as it is shown."""
    running = wanted.status is ImportStatus.RUNNING
    return ImportObject(
        id=wanted.id,
        created_at=wanted.created_at,
        finished_at=wanted.finished_at,
        name=wanted.name,
        licence=wanted.licence,
        origin=wanted.origin,
        filenames=wanted.filenames,
        status=wanted.status.value,
        progress=imports.progress_of(wanted.id) if running else None,
        error=wanted.error,
    )


class ImportsController(Controller):
    """Imports of base models; asking for one needs the admin key."""

    path = "/api/v1/imports"
    tags = ("models",)

    @post("/", operation_id="createImport", status_code=HTTP_200_OK, opt={auth.ADMIN: True})
    async def create(self, data: ImportRequest, store: Store, imports: ImportQueue) -> ImportObject:
        """Ask for an import; it is done when its status says so."""
        wanted = await asyncio.to_thread(import_request.create, store, data)
        imports.wake()
        return to_wire(wanted, imports)

    @get("/", operation_id="listImports")
    async def list(
        self,
        store: Store,
        imports: ImportQueue,
        after: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
    ) -> Page[ImportObject]:
        """List imports, newest first."""
        found, has_more = await asyncio.to_thread(store.imports.page, after=after, limit=limit)
        return Page([to_wire(each, imports) for each in found], has_more)

    @get("/{import_id:str}", operation_id="retrieveImport")
    async def retrieve(self, store: Store, imports: ImportQueue, import_id: str) -> ImportObject:
        """Describe one import."""
        return to_wire(await asyncio.to_thread(store.imports.get, import_id), imports)

    @post(
        "/{import_id:str}/cancel",
        operation_id="cancelImport",
        status_code=HTTP_200_OK,
        opt={auth.ADMIN: True},
    )
    async def cancel(self, imports: ImportQueue, import_id: str) -> ImportObject:
        """Cancel an import; its processes are gone when this answers."""
        return to_wire(await imports.cancel(import_id), imports)
