"""Uploads in parts: each part durable by itself, all of them a file in one step at the end.

A file is there or it is not: a kill in the middle leaves an upload that can be gone on with until it expires.
"""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from sqlalchemy import Connection, func, select, update

from appliance import durable
from appliance.errors import Busy, InvalidInput, TooLarge, WrongState
from appliance.records import CheckedRows, StoredFile
from appliance.store import rows, upload_rows
from appliance.store.blobs import BlobStore, Incoming
from appliance.store.database import Database
from appliance.store.files import FileStore
from appliance.store.joined_files import JoinedFiles
from appliance.store.quota import Quota
from appliance.store.tables import upload_parts, uploads
from appliance.upload_records import Upload, UploadPart, UploadStatus

# OpenAI gives one hour for all of 8 GB; here it is one from the last part on, since a model may be larger,
# and who gave up leaves nothing that could be cancelled.
LIFETIME_SECONDS = 3600
MAX_PENDING = 64


class UploadStore:
    """Uploads and their parts, below `directory`."""

    def __init__(
        self,
        database: Database,
        files: FileStore,
        blobs: BlobStore,
        quota: Quota,
        directory: Path,
    ) -> None:
        self._database = database
        self._files = files
        self._blobs = blobs
        self._quota = quota
        self._directory = directory
        self._creating = threading.Lock()
        self._completing: dict[str, threading.Lock] = {}
        directory.mkdir(exist_ok=True)
        durable.give_to_owner_of_parent(directory)

    def create(self, *, filename: str, purpose: str, size_bytes: int) -> Upload:
        """Begin an upload; raises OutOfDisk if there is no room for it, Busy if too many are under way."""
        now = int(time.time())
        upload = Upload(
            id=rows.new_id("upload_"),
            created_at=now,
            expires_at=now + LIFETIME_SECONDS,
            filename=filename,
            purpose=purpose,
            bytes=size_bytes,
        )
        with self._creating:
            self._check_room(size_bytes)
            (self._directory / upload.id).mkdir()
            durable.fsync_path(self._directory)
            with self._database.transaction() as connection:
                rows.add(connection, uploads, upload)
        return upload

    def get(self, upload_id: str) -> Upload:
        """The upload, or NotFound."""
        with self._database.reading() as connection:
            return upload_rows.get(connection, upload_id)

    def file_of(self, upload: Upload) -> StoredFile | None:
        """What came of it, unless that was deleted since."""
        return None if upload.file_id is None else self._files.find(upload.file_id)

    def add_part(self, upload_id: str, source: BinaryIO) -> UploadPart:
        """Store one part; raises WrongState if the upload has ended, TooLarge beyond what it may hold."""
        with self._database.reading() as connection:
            upload_rows.require_pending(upload_rows.get(connection, upload_id))
        incoming = self._receive(source)
        part = UploadPart(
            id=rows.new_id("part_"),
            created_at=int(time.time()),
            upload_id=upload_id,
            bytes=incoming.bytes,
        )
        path = self._path(part)
        try:
            # Gone if the upload was ended meanwhile, which the transaction finds.
            with suppress(FileNotFoundError):
                incoming.path.replace(path)
                durable.fsync_path(path.parent)
            with self._database.transaction() as connection:
                upload = upload_rows.get(connection, upload_id)
                upload_rows.require_pending(upload)
                upload_rows.check_total(connection, upload, part)
                rows.add(connection, upload_parts, part)
                later = int(time.time()) + LIFETIME_SECONDS
                connection.execute(
                    update(uploads).where(uploads.c.id == upload_id).values(expires_at=later)
                )
        except BaseException:
            path.unlink(missing_ok=True)
            raise
        finally:
            self._blobs.discard(incoming)
        return part

    def _receive(self, source: BinaryIO) -> Incoming:
        try:
            incoming = self._blobs.receive(source, limit_bytes=upload_rows.MAX_PART_BYTES)
        except TooLarge:
            raise upload_rows.bad_part(f"more than {upload_rows.MAX_PART_BYTES} bytes") from None
        if not incoming.bytes:
            self._blobs.discard(incoming)
            raise upload_rows.bad_part("none")
        return incoming

    def complete(
        self,
        upload_id: str,
        part_ids: Sequence[str],
        md5: str | None,
        check: Callable[[Path], CheckedRows | None],
    ) -> Upload:
        """Make a file of the parts, in this order; of an upload that is complete already, what came of it.

        Raises InvalidInput if they are not what was announced, or `check` refuses the bytes: then the upload
        is as it was. A second call waits for the first.
        """
        with self._completing.setdefault(upload_id, threading.Lock()):
            try:
                return self._complete(upload_id, part_ids, md5, check)
            finally:
                # Who waits for it has it already, and finds the upload as it is now.
                self._completing.pop(upload_id, None)

    def _complete(
        self,
        upload_id: str,
        part_ids: Sequence[str],
        md5: str | None,
        check: Callable[[Path], CheckedRows | None],
    ) -> Upload:
        with self._database.reading() as connection:
            upload = upload_rows.get(connection, upload_id)
            if upload.status is UploadStatus.COMPLETED:
                return upload
            upload_rows.require_pending(upload)
            paths = [self._path(part) for part in upload_rows.chosen(connection, upload, part_ids)]

        def end(connection: Connection, file: StoredFile) -> None:
            upload_rows.end(connection, upload_id, UploadStatus.COMPLETED, file.id)

        source = JoinedFiles(paths)
        try:
            self._files.add(
                cast(BinaryIO, source),
                filename=upload.filename,
                purpose=upload.purpose,
                limit_bytes=upload.bytes,
                check=lambda path: check(_intact(path, source, md5)),
                in_transaction=end,
            )
        except (FileNotFoundError, WrongState):
            # Ended meanwhile, and its parts with it; perhaps by the same request, sent again.
            upload = self.get(upload_id)
            if upload.status is UploadStatus.COMPLETED:
                return upload
            upload_rows.require_pending(upload)
            raise
        self._remove(upload_id)
        return self.get(upload_id)

    def cancel(self, upload_id: str) -> Upload:
        """End an upload and forget its parts; raises WrongState if it has ended."""
        with self._database.transaction() as connection:
            upload_rows.require_pending(upload_rows.get(connection, upload_id))
            upload_rows.end(connection, upload_id, UploadStatus.CANCELLED)
        self._remove(upload_id)
        return self.get(upload_id)

    def remove_ended(self) -> None:
        """End what has expired, and remove parts that belong to no upload under way."""
        with self._creating:
            with self._database.transaction() as connection:
                pending = select(uploads.c.id).where(uploads.c.status == UploadStatus.PENDING.value)
                late = pending.where(uploads.c.expires_at <= time.time())
                for upload_id in connection.scalars(late).all():
                    if upload_id not in self._completing:
                        upload_rows.end(connection, upload_id, UploadStatus.EXPIRED)
                known = set(connection.scalars(pending))
            for directory in self._directory.iterdir():
                if directory.name not in known:
                    shutil.rmtree(directory, ignore_errors=True)

    def _check_room(self, size_bytes: int) -> None:
        with self._database.reading() as connection:
            pending = connection.execute(
                select(func.count(), func.sum(uploads.c.bytes)).where(
                    uploads.c.status == UploadStatus.PENDING.value
                )
            ).one()
            parts = connection.execute(
                select(func.sum(upload_parts.c.bytes), uploads.c.bytes)
                .join(uploads, uploads.c.id == upload_parts.c.upload_id)
                .group_by(uploads.c.id)
            )
            # What was sent twice leaves no more room for the rest.
            arrived = sum(min(of_parts, announced) for of_parts, announced in parts)
        if pending[0] >= MAX_PENDING:
            raise Busy(
                "too_many_uploads",
                f"at most {MAX_PENDING} uploads may be under way; there are {pending[0]}",
                next_step="complete or cancel some",
            )
        self._quota.check(size_bytes + (pending[1] or 0))
        # Parts and file lie side by side while the one is made of the others.
        needed = 2 * (size_bytes + (pending[1] or 0)) - arrived
        free = shutil.disk_usage(self._directory).free
        if needed > free:
            raise durable.out_of_disk(
                f"an upload of {size_bytes} bytes, with those under way, needs {needed / 2**30:.1f} GiB "
                f"of free space; there are {free / 2**30:.1f} GiB"
            )

    def _path(self, part: UploadPart) -> Path:
        return self._directory / part.upload_id / part.id

    def _remove(self, upload_id: str) -> None:
        shutil.rmtree(self._directory / upload_id, ignore_errors=True)


def _intact(path: Path, source: JoinedFiles, md5: str | None) -> Path:
    found = source.md5.hexdigest()
    if md5 is not None and md5.lower() != found:
        raise InvalidInput(
            "md5_mismatch",
            f"the file should have the MD5 {md5}; its parts together have {found}",
            param="md5",
            next_step="upload it again",
        )
    return path
