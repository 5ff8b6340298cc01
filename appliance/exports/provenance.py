"""Everything that is known of how a fine-tuned model came about. No behaviour, no I/O."""

from __future__ import annotations

import msgspec

from appliance.child_records import TrainingResult
from appliance.records import BaseModel, Job, Release, ReleaseFile


class DataUsed(msgspec.Struct, frozen=True, kw_only=True):
    """A file of rows as a job had it; its `id` may be that of a file that was deleted since.

    What a deleted model was trained on is not here any more: then the rest is None.
    """

    id: str
    job_id: str
    use: str
    bytes: int | None = None
    rows: int | None = None
    sha256: str | None = None


class Written(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the export, and the release's own record of it if it is one of that's GGUFs."""

    name: str
    bytes: int
    sha256: str
    released: ReleaseFile | None = None


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What the documents are written from.

    `earlier_jobs` are those whose adapter this job went on from, the nearest first; `data` is of all of
    them. `versions` are the software's at training and release.
    """

    release: Release
    base: BaseModel
    job: Job
    earlier_jobs: tuple[Job, ...]
    data: tuple[DataUsed, ...]
    training: TrainingResult
    versions: dict[str, str]
