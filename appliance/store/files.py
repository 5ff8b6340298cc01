"""Uploaded files: a row each, and the blob that holds the bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import Connection, delete, select

from appliance.errors import NotFound
from appliance.records import CheckedRows, StoredFile
from appliance.store import rows
from appliance.store.blobs import BlobStore
from appliance.store.database import Database
from appliance.store.quota import Quota
from appliance.store.tables import base_models, files


class FileStore:
    """Files as users see them."""

    def __init__(self, database: Database, blobs: BlobStore, quota: Quota) -> None:
        self._database = database
        self._quota = quota
        self._blobs = blobs
        # Two files may share a blob: keeping it for one and deleting it for the other must not cross.
        self._blob_lock = threading.Lock()

    def add(
        self,
        source: BinaryIO,
        *,
        filename: str,
        purpose: str,
        limit_bytes: int,
        check: Callable[[Path], CheckedRows | None],
        in_transaction: Callable[[Connection, StoredFile], None] = lambda connection, file: None,
    ) -> StoredFile:
        """Store a file if `check` accepts its bytes; `check` returns what it knows of its rows, if any.

        What `in_transaction` writes is durable together with the file, or neither is.
        """
        incoming = self._blobs.receive(source, limit_bytes=limit_bytes)
        try:
            self._quota.check(0)
            checked = check(incoming.path)
            file = StoredFile(
                id=rows.new_id("file-"),
                created_at=int(time.time()),
                filename=filename,
                purpose=purpose,
                bytes=incoming.bytes,
                sha256=incoming.sha256,
                rows=checked.rows if checked else None,
                longest_row_bytes=checked.longest_row_bytes if checked else None,
            )
            with self._blob_lock:
                self._blobs.keep(incoming)
                try:
                    with self._database.transaction() as connection:
                        rows.add(connection, files, file)
                        in_transaction(connection, file)
                except BaseException:
                    self._delete_unless_used(file.sha256)
                    raise
            return file
        finally:
            self._blobs.discard(incoming)

    def get(self, file_id: str) -> StoredFile:
        """The file, or NotFound."""
        file = self.find(file_id)
        if file is None:
            raise NotFound("file_not_found", f"No such file: {file_id!r}", param="file_id")
        return file

    def find(self, file_id: str) -> StoredFile | None:
        """The file, or None."""
        with self._database.reading() as connection:
            return rows.find(connection, files, StoredFile, id=file_id)

    def open_content(self, file: StoredFile) -> BinaryIO:
        """The bytes, for reading; they stay readable when the file is deleted. NotFound if it just was."""
        return self._blobs.open(file.sha256)

    def link_content(self, file: StoredFile, destination: Path) -> None:
        """Give the bytes a second name that outlives the file."""
        self._blobs.link(file.sha256, destination)

    def page(
        self, *, purpose: str | None, after: str | None, limit: int, order: rows.Order
    ) -> tuple[list[StoredFile], bool]:
        """One page of the list, and whether more follow."""
        query = select(files)
        if purpose is not None:
            query = query.where(files.c.purpose == purpose)
        with self._database.reading() as connection:
            return rows.page(
                connection, query, files, StoredFile, after=after, limit=limit, order=order
            )

    def delete(self, file_id: str) -> None:
        """Delete the file and, if no other file has the same content, its bytes."""
        file = self.get(file_id)
        with self._blob_lock:
            with self._database.transaction() as connection:
                connection.execute(delete(files).where(files.c.id == file_id))
            self._delete_unless_used(file.sha256)

    def has_content(self, digest: str) -> bool:
        """Whether there is a blob of this digest."""
        return self._blobs.has(digest)

    def share_content(self, path: Path, digest: str) -> None:
        """Let a base model's file and a blob with the same content be the same bytes on the disk.

        The blob stays while a base model in the catalogue has it among its sources.
        """
        # Before the lock, which every upload needs: it reads all of a large file.
        sound = self._blobs.is_sound(digest)
        with self._blob_lock:
            self._blobs.share(path, digest, sound=sound)

    def delete_unused_blobs(self) -> None:
        """Delete bytes that no file and no base model refers to: a kill came between the row and the blob, or
        a model is gone."""
        with self._blob_lock:
            for digest in self._blobs.digests() - self._used():
                self._blobs.delete(digest)

    def _delete_unless_used(self, digest: str) -> None:
        if digest not in self._used():
            self._blobs.delete(digest)

    def _used(self) -> set[str]:
        with self._database.reading() as connection:
            used = set(connection.scalars(select(files.c.sha256)))
            for sources in connection.scalars(select(base_models.c.sources)):
                used |= {source["sha256"] for source in sources or ()}
        return used
