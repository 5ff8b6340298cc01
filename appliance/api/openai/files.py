"""`/v1/files`: upload, list, retrieve, read, delete."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, cast, get_args
from urllib.parse import quote

import msgspec
from litestar import Controller, Request, delete, get, post
from litestar.params import Parameter
from litestar.status_codes import HTTP_200_OK

from appliance.api.openai import upload_form
from appliance.api.openai.paging import Deleted, Page
from appliance.api.streaming import ClosingStream
from appliance.datasets import chat_rows
from appliance.errors import InvalidInput
from appliance.records import CheckedRows, StoredFile
from appliance.serving.admission import stopping
from appliance.settings import Settings
from appliance.store.store import Store

Purpose = Literal["assistants", "batch", "fine-tune", "vision", "user_data", "evals", "model"]
TRAINING: Purpose = "fine-tune"
# A file of a base model, to be imported; not one of OpenAI's.
MODEL: Purpose = "model"
MAX_FILENAME_CHARACTERS = 255
PIECE_BYTES = 1 << 20
# Checking takes a whole core; more at once would only make everything else wait.
ADDING = asyncio.Semaphore(2)


class FileObject(msgspec.Struct):
    """OpenAI's File. `status` is old but required; a stored file has always been checked."""

    id: str
    bytes: int
    created_at: int
    filename: str
    purpose: str
    status: str = "processed"
    status_details: str | None = None
    expires_at: int | None = None
    object: str = "file"


def to_wire(file: StoredFile) -> FileObject:
    """A stored file as OpenAI shows it."""
    return FileObject(
        id=file.id,
        bytes=file.bytes,
        created_at=file.created_at,
        filename=file.filename,
        purpose=file.purpose,
    )


class FilesController(Controller):
    """OpenAI's files resource."""

    path = "/v1/files"
    tags = ("files",)

    @post("/", operation_id="createFile", status_code=HTTP_200_OK)
    async def create(
        self, request: Request[Any, Any, Any], store: Store, settings: Settings
    ) -> FileObject:
        """Store a file; training data is checked row by row before it is accepted."""
        async with upload_form.read(request, store.temporary_directory) as form:
            refuse_expiry(form.fields)
            purpose = purpose_of(form.fields.get("purpose"))
            if form.filename is None:
                raise InvalidInput(
                    "missing_file", "the form should hold a file in its field file", param="file"
                )
            async with ADDING:
                file = await asyncio.to_thread(
                    store.files.add,
                    form.file,
                    filename=safe_filename(form.filename),
                    purpose=purpose,
                    limit_bytes=settings.max_upload_bytes,
                    check=check_for(purpose, request.app.state.work),
                )
        return to_wire(file)

    @get("/", operation_id="listFiles", sync_to_thread=True)
    def list(
        self,
        store: Store,
        purpose: str | None = None,
        after: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=10000)] = 10000,
        order: Literal["asc", "desc"] = "desc",
    ) -> Page[FileObject]:
        """List files, newest first."""
        found, has_more = store.files.page(purpose=purpose, after=after, limit=limit, order=order)
        data = [to_wire(file) for file in found]
        ids = [file.id for file in data]
        return Page(
            data, has_more, first_id=ids[0] if ids else None, last_id=ids[-1] if ids else None
        )

    @get("/{file_id:str}", operation_id="retrieveFile", sync_to_thread=True)
    def retrieve(self, store: Store, file_id: str) -> FileObject:
        """Describe one file."""
        return to_wire(store.files.get(file_id))

    @get("/{file_id:str}/content", operation_id="downloadFile", sync_to_thread=True)
    def content(self, store: Store, file_id: str) -> ClosingStream:
        """The file's bytes, as they were uploaded; a deletion meanwhile takes nothing from the answer."""
        file = store.files.get(file_id)
        return ClosingStream(
            _pieces(store.files.open_content(file)),
            media_type="application/octet-stream",
            headers={
                "Content-Length": str(file.bytes),
                # RFC 6266, with the name in UTF-8 as RFC 8187 writes it.
                "Content-Disposition": f"attachment; filename*=utf-8''{quote(file.filename, safe='')}",
            },
        )

    @delete(
        "/{file_id:str}", operation_id="deleteFile", status_code=HTTP_200_OK, sync_to_thread=True
    )
    def delete(self, store: Store, file_id: str) -> Deleted:
        """Delete a file; jobs that use it keep their data."""
        store.files.delete(file_id)
        return Deleted(id=file_id, object="file")


async def _pieces(content: BinaryIO) -> AsyncGenerator[bytes, None]:
    with content:
        while piece := await asyncio.to_thread(content.read, PIECE_BYTES):
            yield piece


def purpose_of(given: object) -> Purpose:
    """What a client says that a file is for; raises InvalidInput for what there is not."""
    try:
        return cast(Purpose, msgspec.convert(given, Purpose))
    except msgspec.ValidationError:
        raise InvalidInput(
            "invalid_purpose",
            f"purpose should be one of {', '.join(get_args(Purpose))}; found {given!r}",
            param="purpose",
        ) from None


def refuse_expiry(fields: Iterable[str]) -> None:
    """Ignoring it would keep data that its owner believes to be gone."""
    if any(name.startswith("expires_after") for name in fields):
        raise InvalidInput(
            "unsupported_parameter",
            "expires_after is not supported by this version",
            param="expires_after",
            next_step="leave it out and delete the file when it is no longer needed",
        )


def check_for(purpose: Purpose, work: Any) -> Callable[[Path], CheckedRows | None]:
    """What looks at the bytes of such a file.

    `work` says whether the appliance is being stopped: then nobody waits for a long check.
    """
    if purpose != TRAINING:
        return lambda path: None

    def go_on() -> None:
        if work.stopping:
            raise stopping()

    return lambda path: chat_rows.check_file(path, go_on)


def safe_filename(name: str) -> str:
    """What a client calls a file, as far as it is a plain name."""
    # Shown to people and sent in a header; never a path here, whatever the client calls it.
    printable = "".join(character for character in name if character.isprintable())
    return printable.replace("\\", "/").rpartition("/")[2][:MAX_FILENAME_CHARACTERS] or "file"
