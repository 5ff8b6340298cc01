"""Reads the form of an upload piece by piece: its one file goes to disk, its text fields stay small.

Litestar's own reader would keep text fields of any size in memory, and up to a thousand files.
"""

from __future__ import annotations

import asyncio
import dataclasses
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, BinaryIO, cast

from litestar import Request
from multipart import MultipartError, MultipartSegment, PushMultipartParser

from appliance.errors import InvalidInput

MAX_PARTS = 16
MAX_FIELD_BYTES = 4096
# Room for the form around the file.
OVERHEAD_BYTES = 1 << 20
# A smaller file never touches the disk before it is checked.
SPOOL_BYTES = 1 << 20


@dataclasses.dataclass
class UploadForm:
    """What a form held; `filename` is None if there was no file."""

    file: BinaryIO
    filename: str | None = None
    fields: dict[str, str] = dataclasses.field(default_factory=dict)


@asynccontextmanager
async def read(
    request: Request[Any, Any, Any], spool: Path, field: str = "file"
) -> AsyncIterator[UploadForm]:
    """The form of a request, its file at the beginning; raises InvalidInput if it is none.

    The file comes in the given field. A large one lies in the directory `spool` meanwhile; it is gone when
    the block is left.
    """
    kind, options = request.content_type
    boundary = options.get("boundary")
    if kind != "multipart/form-data" or not boundary:
        raise _invalid(f"Content-Type is {kind!r}", field)
    with tempfile.SpooledTemporaryFile(max_size=SPOOL_BYTES, dir=str(spool)) as file:
        form = UploadForm(cast(BinaryIO, file))
        try:
            await _parse(request, boundary, form, field)
        except (MultipartError, UnicodeError) as exc:
            raise _invalid(str(exc), field) from exc
        file.seek(0)
        yield form


async def _parse(
    request: Request[Any, Any, Any], boundary: str, form: UploadForm, field: str
) -> None:
    segment, text = None, bytearray()
    with PushMultipartParser(boundary, max_segment_count=MAX_PARTS) as parser:
        async for chunk in request.stream():
            for piece in parser.parse(chunk):
                if isinstance(piece, MultipartSegment):
                    segment, text = piece, bytearray()
                    _begin(form, segment, field)
                elif segment is not None and segment.filename is not None:
                    await asyncio.to_thread(form.file.write, piece or b"")
                elif piece:
                    text += piece
                    if len(text) > MAX_FIELD_BYTES:
                        found = f"a text field has more than {MAX_FIELD_BYTES} bytes"
                        raise _invalid(found, field)
                elif segment is not None:
                    form.fields[str(segment.name)] = text.decode()


def _begin(form: UploadForm, segment: MultipartSegment, field: str) -> None:
    if segment.filename is None:
        return
    if segment.name != field or form.filename is not None:
        raise _invalid(f"it holds a file in {segment.name!r} besides", field)
    form.filename = segment.filename


def _invalid(found: str, field: str) -> InvalidInput:
    return InvalidInput(
        "invalid_form",
        f"the body should be multipart/form-data with one file in its field {field}, but: {found}",
        param=field,
    )
