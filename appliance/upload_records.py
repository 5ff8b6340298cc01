"""Records of what comes in over the network in pieces: uploads in parts, and imports of base models.

As `appliance.records`, which they would make too long: no behaviour, no I/O; seconds and bytes.
"""

from __future__ import annotations

import enum

import msgspec

from appliance.records import JobError


class UploadStatus(enum.StrEnum):
    """OpenAI's statuses of an upload in parts."""

    PENDING = "pending"
    COMPLETED = "completed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


class ImportStatus(enum.StrEnum):
    """Of an import of a base model over the API."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"


class Upload(msgspec.Struct, frozen=True, kw_only=True):
    """A file that comes in parts; `bytes` is what was announced, `file_id` what came of it."""

    id: str
    created_at: int
    expires_at: int
    filename: str
    purpose: str
    bytes: int
    status: UploadStatus = UploadStatus.PENDING
    file_id: str | None = None


class UploadPart(msgspec.Struct, frozen=True, kw_only=True):
    """A part of an upload that has arrived."""

    id: str
    created_at: int
    upload_id: str
    bytes: int


class BaseImport(msgspec.Struct, frozen=True, kw_only=True):
    """An import of a base model from uploaded files, whose names are `filenames`."""

    id: str
    created_at: int
    name: str
    licence: str
    origin: str
    chat_template: str | None
    filenames: tuple[str, ...]
    status: ImportStatus = ImportStatus.QUEUED
    finished_at: int | None = None
    error: JobError | None = None
