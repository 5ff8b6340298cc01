"""Everything that is known of how a fine-tuned model came about. No behaviour, no I/O."""

from __future__ import annotations

import msgspec

from appliance.child_records import TrainingResult
from appliance.records import BaseModel, Job, Release


class DataUsed(msgspec.Struct, frozen=True, kw_only=True):
    """A file of rows as the job had it; its `id` may be that of a file that was deleted since."""

    id: str
    use: str
    bytes: int
    rows: int
    sha256: str


class Provenance(msgspec.Struct, frozen=True, kw_only=True):
    """What a model card is written from; `versions` are the software's at training and release."""

    release: Release
    base: BaseModel
    job: Job
    data: tuple[DataUsed, ...]
    training: TrainingResult
    versions: dict[str, str]
