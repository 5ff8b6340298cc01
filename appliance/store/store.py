"""Opens the state directory and hands out the stores in it.

Layout: `appliance.db`, `blobs/`, `uploads/ID/`, `imports/ID/`, `jobs/ID/`, `base_models/NAME/`, `tmp/`,
`admin.key`, `daemon.lock`.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from appliance import durable
from appliance.errors import ConfigurationError
from appliance.records import ApiKey, BaseModel, Job, JobEvent, Release, StoredFile
from appliance.store import rows
from appliance.store.aliases import Alias, AliasStore
from appliance.store.blobs import BlobStore
from appliance.store.catalog import CatalogStore
from appliance.store.database import Database
from appliance.store.files import FileStore
from appliance.store.imports import ImportStore
from appliance.store.jobs import JobStore
from appliance.store.keys import KeyStore
from appliance.store.quota import Quota
from appliance.store.uploads import UploadStore
from appliance.upload_records import BaseImport, Upload, UploadPart


class Store:
    """Everything durable. Its methods block: call them from a thread, not from the event loop."""

    def __init__(self, state_dir: Path, quota_bytes: int = 0) -> None:
        self.directory = state_dir
        self.jobs_directory = state_dir / "jobs"
        self.base_models_directory = state_dir / "base_models"
        self.imports_directory = state_dir / "imports"
        self.temporary_directory = state_dir / "tmp"
        rows.prepare(
            Alias,
            ApiKey,
            BaseImport,
            BaseModel,
            Job,
            JobEvent,
            Release,
            StoredFile,
            Upload,
            UploadPart,
        )
        create_state_dir(state_dir)
        for directory in (
            self.jobs_directory,
            self.base_models_directory,
            self.imports_directory,
            self.temporary_directory,
        ):
            directory.mkdir(exist_ok=True)
            durable.give_to_owner_of_parent(directory)
        self._database = Database(state_dir / "appliance.db")
        blobs = BlobStore(state_dir / "blobs")
        counted = (state_dir / "blobs", self.imports_directory, self.base_models_directory)
        self.quota = Quota(counted, quota_bytes)
        self.files = FileStore(self._database, blobs, self.quota)
        self.uploads = UploadStore(
            self._database, self.files, blobs, self.quota, state_dir / "uploads"
        )
        self.imports = ImportStore(self._database)
        self.jobs = JobStore(self._database)
        self.catalog = CatalogStore(self._database)
        self.aliases = AliasStore(self._database)
        self.keys = KeyStore(self._database)

    def close(self) -> None:
        """Close the database."""
        self._database.close()


def create_state_dir(state_dir: Path) -> None:
    """Make the state directory unless it is there; raises ConfigurationError if it cannot be used."""
    try:
        state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=state_dir):
            pass
    except OSError as exc:
        raise ConfigurationError(
            "unusable_state_dir",
            f"state_dir should be a directory that can be written; {state_dir}: {exc.strerror}",
            next_step="set --state-dir or APPLIANCE_STATE_DIR",
        ) from exc
