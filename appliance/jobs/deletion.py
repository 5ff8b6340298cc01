"""A model goes: out of the catalogue, out of memory, and its files from the disk.

In that order: what is left of it when the power fails has no name any more. At the next start that is
removed, but for a base's directory that had not been touched yet, which is told. Answers under way are cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path

from appliance.records import BaseModel, Job, Release
from appliance.store.store import Store

logger = logging.getLogger(__name__)

# Of a job's directory, what its model was made of and is: all but what the job's own record shows.
_PARTS = ("release", "training", "data")
_DELETED = "deleted-"


async def delete(store: Store, unload: Callable[[Path], Awaitable[None]], name: str) -> None:
    """Delete a base model, or a fine-tuned one with its adapter and the job's copy of its data.

    Raises what `CatalogStore.delete` does.
    """
    model = await asyncio.to_thread(store.catalog.delete, name)
    logger.info("model deleted", extra={"model": name})
    for file in model.files:
        await unload(store.directory / file.path)
    await asyncio.to_thread(_remove_files, store, model)


def remove_leftovers(store: Store) -> None:
    """Of base models that were deleted when the daemon was killed; blocks.

    A directory that the catalogue does not know, as of an import that was killed or is under way, or after an
    older database was put back, is left alone and told.
    """
    for directory in store.temporary_directory.glob(f"{_DELETED}*"):
        _remove(directory)
    known = {Path(base.directory).name for base in store.catalog.bases()}
    for directory in store.base_models_directory.iterdir():
        if directory.name not in known:
            logger.warning(
                "a directory belongs to no base model; import it again, or remove it",
                extra={"directory": str(directory)},
            )


def remove_job_leftovers(store: Store, job: Job) -> None:
    """Of a job whose model was deleted; blocks."""
    name = job.fine_tuned_model
    if name is not None and store.catalog.find_release(name) is None:
        _remove_parts(store, job.id)


def _remove_files(store: Store, model: BaseModel | Release) -> None:
    if isinstance(model, BaseModel):
        # Out of the way in one step: half a model is not to be taken for one.
        deleted = store.temporary_directory / f"{_DELETED}{model.name}"
        _remove(deleted)
        # Somebody may have removed it by hand.
        with contextlib.suppress(FileNotFoundError):
            (store.directory / model.directory).rename(deleted)
        _remove(deleted)
        store.files.delete_unused_blobs()
    else:
        _remove_parts(store, model.job_id)


def _remove_parts(store: Store, job_id: str) -> None:
    for part in _PARTS:
        _remove(store.jobs_directory / job_id / part)


def _remove(directory: Path) -> None:
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(directory)
