"""What the database knows of an upload and its parts, and what it may become of that."""

from __future__ import annotations

import time
from collections.abc import Sequence

from sqlalchemy import Connection, delete, func, select, update

from appliance.errors import InvalidInput, NotFound, TooLarge, WrongState
from appliance.store import rows
from appliance.store.tables import upload_parts, uploads
from appliance.upload_records import Upload, UploadPart, UploadStatus

MAX_PART_BYTES = 64 << 20
MAX_PARTS = 1 << 14
# A part whose answer was lost is sent again, and there is no way to take the first one back.
_MOST_PARTS_OF_BYTES = 2


def chosen(connection: Connection, upload: Upload, part_ids: Sequence[str]) -> list[UploadPart]:
    """Those parts, in this order; raises InvalidInput unless they are the whole file."""
    query = select(upload_parts).where(upload_parts.c.upload_id == upload.id)
    known = {row.id: rows.to_record(row, UploadPart) for row in connection.execute(query)}
    strangers = [part_id for part_id in part_ids if part_id not in known]
    if strangers or len(set(part_ids)) != len(part_ids):
        raise InvalidInput(
            "invalid_parts",
            f"part_ids should name each part of {upload.id} at most once; "
            f"{f'{strangers[0]!r} is none' if strangers else 'one is named twice'}",
            param="part_ids",
        )
    chosen = [known[part_id] for part_id in part_ids]
    total = sum(part.bytes for part in chosen)
    if total != upload.bytes:
        raise InvalidInput(
            "incomplete_upload",
            f"the parts should have the {upload.bytes} bytes that were announced; they have {total}",
            param="part_ids",
            next_step="add what is missing, or begin another upload",
        )
    return chosen


def check_total(connection: Connection, upload: Upload, part: UploadPart) -> None:
    """Raise TooLarge if with this part there would be more than was announced."""
    query = select(func.sum(upload_parts.c.bytes), func.count()).where(
        upload_parts.c.upload_id == upload.id
    )
    before, count = connection.execute(query).one()
    total = (before or 0) + part.bytes
    if count >= MAX_PARTS:
        raise TooLarge(
            "too_many_parts",
            f"an upload may have {MAX_PARTS} parts; it has as many",
            param="data",
            next_step="begin another upload, with larger parts",
        )
    if part.bytes > upload.bytes or total > _MOST_PARTS_OF_BYTES * upload.bytes:
        raise TooLarge(
            "upload_too_large",
            f"the parts should have the {upload.bytes} bytes that were announced; they would have {total}",
            param="data",
            next_step="begin another upload with the right size",
        )


def bad_part(found: str) -> TooLarge:
    """The refusal of a part of another size."""
    return TooLarge(
        "invalid_part_size",
        f"a part should have 1 to {MAX_PART_BYTES} bytes; this one has {found}",
        param="data",
        next_step="split the file otherwise",
    )


def get(connection: Connection, upload_id: str) -> Upload:
    """The upload, or NotFound."""
    found = rows.find(connection, uploads, Upload, id=upload_id)
    if found is None:
        raise NotFound("upload_not_found", f"No such upload: {upload_id!r}", param="upload_id")
    return found


def require_pending(upload: Upload) -> None:
    """Raise WrongState if it has ended, or its time is over."""
    late = upload.expires_at <= time.time()
    if upload.status is not UploadStatus.PENDING or late:
        status = UploadStatus.EXPIRED if upload.status is UploadStatus.PENDING else upload.status
        raise WrongState(
            "upload_not_pending",
            f"the upload should be pending; it is {status.value}",
            param="upload_id",
            next_step="begin another upload",
        )


def end(
    connection: Connection, upload_id: str, status: UploadStatus, file_id: str | None = None
) -> None:
    """Let it end, and forget its parts; raises WrongState if it has ended."""
    pending = uploads.c.status == UploadStatus.PENDING.value
    done = connection.execute(
        update(uploads)
        .where(uploads.c.id == upload_id, pending)
        .values(status=status.value, file_id=file_id)
    )
    if done.rowcount == 0:
        require_pending(get(connection, upload_id))
    connection.execute(delete(upload_parts).where(upload_parts.c.upload_id == upload_id))
