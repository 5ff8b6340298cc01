"""`/v1/uploads`: a file in parts, for what is too large for one request."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

import msgspec
from litestar import Controller, Request, get, post
from litestar.status_codes import HTTP_200_OK
from msgspec import Meta

from appliance.api.openai import files, upload_form
from appliance.api.openai.files import FileObject
from appliance.errors import InvalidInput, TooLarge
from appliance.settings import Settings
from appliance.store.store import Store
from appliance.store.upload_rows import MAX_PART_BYTES, MAX_PARTS
from appliance.upload_records import Upload, UploadPart

MAX_UPLOAD_BYTES = 1 << 50
MD5 = r"^[0-9a-fA-F]{32}$"


class NewUpload(msgspec.Struct, kw_only=True):
    """OpenAI's CreateUploadRequest; `mime_type` is asked for and says nothing here."""

    bytes: Annotated[int, Meta(ge=1, le=MAX_UPLOAD_BYTES)]
    filename: Annotated[str, Meta(min_length=1)]
    mime_type: str
    purpose: str
    expires_after: Any = None


class Completion(msgspec.Struct, kw_only=True):
    """OpenAI's CompleteUploadRequest: the parts in their order."""

    part_ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_PARTS)]
    md5: Annotated[str, Meta(pattern=MD5)] | None = None


class UploadObject(msgspec.Struct, kw_only=True):
    """OpenAI's Upload."""

    id: str
    bytes: int
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    status: str
    file: FileObject | None = None
    object: str = "upload"


class PartObject(msgspec.Struct, kw_only=True):
    """OpenAI's UploadPart."""

    id: str
    created_at: int
    upload_id: str
    object: str = "upload.part"


def to_wire(store: Store, upload: Upload) -> UploadObject:
    """An upload as OpenAI shows it, with the file that came of it. Reads the database."""
    file = store.uploads.file_of(upload)
    return UploadObject(
        id=upload.id,
        bytes=upload.bytes,
        created_at=upload.created_at,
        expires_at=upload.expires_at,
        filename=upload.filename,
        purpose=upload.purpose,
        status=upload.status.value,
        file=None if file is None else files.to_wire(file),
    )


class UploadsController(Controller):
    """OpenAI's uploads resource."""

    path = "/v1/uploads"
    tags = ("uploads",)

    @post("/", operation_id="createUpload", status_code=HTTP_200_OK, sync_to_thread=True)
    def create(self, data: NewUpload, store: Store, settings: Settings) -> UploadObject:
        """Announce a file; its parts follow, each within an hour."""
        if data.expires_after is not None:
            files.refuse_expiry(["expires_after"])
        purpose = files.purpose_of(data.purpose)
        if purpose != files.MODEL and data.bytes > settings.max_upload_bytes:
            raise TooLarge(
                "file_too_large",
                f"a file may have {settings.max_upload_bytes} bytes; this one has {data.bytes}",
                param="bytes",
                next_step="split it, or ask the operator to raise max_upload_bytes",
            )
        upload = store.uploads.create(
            filename=files.safe_filename(data.filename), purpose=purpose, size_bytes=data.bytes
        )
        return to_wire(store, upload)

    @get("/{upload_id:str}", operation_id="retrieveUpload", sync_to_thread=True)
    def retrieve(self, store: Store, upload_id: str) -> UploadObject:
        """Describe one upload."""
        return to_wire(store, store.uploads.get(upload_id))

    @post(
        "/{upload_id:str}/complete",
        operation_id="completeUpload",
        status_code=HTTP_200_OK,
    )
    async def complete(
        self, request: Request[Any, Any, Any], data: Completion, store: Store, upload_id: str
    ) -> UploadObject:
        """Make a file of the parts; training data is checked row by row before it is accepted."""
        upload = await asyncio.to_thread(store.uploads.get, upload_id)
        purpose = files.purpose_of(upload.purpose)
        async with files.ADDING:
            upload = await asyncio.to_thread(
                store.uploads.complete,
                upload_id,
                data.part_ids,
                data.md5,
                files.check_for(purpose, request.app.state.work),
            )
        return await asyncio.to_thread(to_wire, store, upload)

    @post(
        "/{upload_id:str}/cancel",
        operation_id="cancelUpload",
        status_code=HTTP_200_OK,
        sync_to_thread=True,
    )
    def cancel(self, store: Store, upload_id: str) -> UploadObject:
        """End an upload and forget its parts."""
        return to_wire(store, store.uploads.cancel(upload_id))


class UploadPartsController(Controller):
    """The parts of an upload, whose bodies may be large."""

    path = "/v1/uploads"
    tags = ("uploads",)
    request_max_body_size = MAX_PART_BYTES + upload_form.OVERHEAD_BYTES

    @post("/{upload_id:str}/parts", operation_id="addUploadPart", status_code=HTTP_200_OK)
    async def add_part(
        self, request: Request[Any, Any, Any], store: Store, upload_id: str
    ) -> PartObject:
        """Store one part of at most 64 MiB; parts may come side by side, and one that is sent again is
        another part."""
        async with upload_form.read(request, store.temporary_directory, "data") as form:
            if form.filename is None:
                raise InvalidInput(
                    "missing_file", "the form should hold a file in its field data", param="data"
                )
            part = await asyncio.to_thread(store.uploads.add_part, upload_id, form.file)
        return _part_to_wire(part)


def _part_to_wire(part: UploadPart) -> PartObject:
    return PartObject(id=part.id, created_at=part.created_at, upload_id=part.upload_id)
