"""What a job's children are told: their `spec.json`, made from the job's plan and the store's paths.

Paths in the database are relative to the state directory, so that it can be moved or restored elsewhere;
here they become absolute.
"""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path
from typing import TypeVar

import msgspec

from appliance import durable
from appliance.child_records import ReleaseSpec, Trained, TrainingResult, TrainingSpec
from appliance.errors import NotFound, WrongState
from appliance.jobs import deletion
from appliance.records import IMPORTANCE_TYPES, BaseModel, GgufFile, Job, Plan, StoredFile
from appliance.settings import Settings
from appliance.store.store import Store

F = TypeVar("F", bound=GgufFile)
TRAIN_FILE = "train.jsonl"
VALIDATION_FILE = "validation.jsonl"
# OpenAI puts the organisation here; the box is one.
ORGANISATION = "local"


def stage_data(store: Store, job_id: str, train: StoredFile, validation: StoredFile | None) -> None:
    """Give the job its own names for its data: deleting a file later takes nothing from the job."""
    directory = store.jobs_directory / job_id
    (directory / "data").mkdir(parents=True)
    store.files.link_content(train, directory / "data" / TRAIN_FILE)
    if validation is not None:
        store.files.link_content(validation, directory / "data" / VALIDATION_FILE)
    durable.fsync_path(directory)
    durable.fsync_path(store.jobs_directory)


def discard_data(store: Store, job_id: str) -> None:
    """The reverse of `stage_data`, for a job that could not be stored."""
    shutil.rmtree(store.jobs_directory / job_id, ignore_errors=True)


def discard_scratch(store: Store, job_id: str) -> None:
    """Remove what only an unfinished job needs: checkpoints, and what a release had half made.

    Of a job that ended without a model also those files of one that were finished.
    """
    directory = store.jobs_directory / job_id
    for scratch in (directory / "training" / "checkpoints", directory / "release" / "intermediate"):
        shutil.rmtree(scratch, ignore_errors=True)
    # A directory of no job is one whose job could not be stored.
    with contextlib.suppress(NotFound):
        job = store.jobs.get(job_id)
        deletion.remove_job_leftovers(store, job)
        if job.fine_tuned_model is None:
            for model in (directory / "release").glob("*.gguf"):
                model.unlink()


def check_data(store: Store, job: Job) -> None:
    """The job's data and base must still be there."""
    base_of(store, job)
    if not _data(store, job, TRAIN_FILE).is_file():
        raise NotFound("file_not_found", f"the data of job {job.id} is gone", param="training_file")


def training(store: Store, settings: Settings, job: Job) -> TrainingSpec:
    """Spec of the training child of a job."""
    return training_of_plan(
        store,
        settings,
        job.plan,
        base_of(store, job),
        train=_data(store, job, TRAIN_FILE),
        validation=_data(store, job, VALIDATION_FILE) if job.validation_file else None,
        seed=job.seed,
    )


def training_of_plan(
    store: Store,
    settings: Settings,
    plan: Plan,
    base: BaseModel,
    *,
    train: Path,
    validation: Path | None,
    seed: int,
) -> TrainingSpec:
    """Spec of the training child, be there a job or not."""
    return TrainingSpec(
        base_directory=str(store.directory / base.directory / "hf"),
        initial_adapter_directory=(
            str(store.directory / plan.initial_adapter) if plan.initial_adapter else None
        ),
        train_file=str(train),
        validation_file=None if validation is None else str(validation),
        validation_fraction=plan.validation_fraction,
        technique=plan.technique,
        hyperparameters=plan.hyperparameters,
        seed=seed,
        checkpoint_seconds=settings.checkpoint_seconds,
        threads=settings.thread_count,
        importance_matrix=_uses_importance(plan),
    )


def _uses_importance(plan: Plan) -> bool:
    gaining = IMPORTANCE_TYPES.intersection(plan.quantizations)
    return plan.importance_matrix != "off" and bool(gaining)


def release(store: Store, settings: Settings, job: Job, trained: TrainingResult) -> ReleaseSpec:
    """Spec of the release child."""
    base, plan = base_of(store, job), job.plan
    directory = store.jobs_directory / job.id / "training"
    importance_file = str(directory / "importance.safetensors") if _uses_importance(plan) else None
    return ReleaseSpec(
        model_name=release_name(job),
        base_directory=str(store.directory / base.directory / "hf"),
        trained=Trained(
            adapter_directory=str(store.directory / adapter_directory(job)),
            base_file=str(store.directory / base.files[0].path),
            behaviour_file=str(directory / "behaviour.json"),
            end_of_turn_token_id=trained.end_of_turn_token_id,
            importance_file=importance_file,
            importance_matrix=plan.importance_matrix,
        ),
        converter_directory=str(settings.converter_dir),
        quantizations=plan.quantizations,
        threads=settings.thread_count,
    )


def release_name(job: Job) -> str:
    """The fine-tuned model's name, in OpenAI's form; the same however often it is asked."""
    return f"ft:{job.plan.base_model}:{ORGANISATION}:{job.suffix or ''}:{job.id[-8:]}"


def adapter_directory(job: Job) -> str:
    """Where the trained adapter lies, relative to the state directory."""
    return f"jobs/{job.id}/training/adapter"


def job_of_adapter(directory: str) -> str:
    """The reverse of `adapter_directory`."""
    return Path(directory).parts[1]


def relative(store: Store, file: F) -> F:
    """The same file with its path relative to the state directory."""
    path = Path(file.path).relative_to(store.directory)
    return msgspec.structs.replace(file, path=str(path))


def base_of(store: Store, job: Job) -> BaseModel:
    """The job's base model; raises WrongState if it has been removed since."""
    base = store.catalog.find_base(job.plan.base_model)
    if base is None:
        raise WrongState(
            "base_model_removed", f"the base model {job.plan.base_model!r} is no longer there"
        )
    return base


def _data(store: Store, job: Job, name: str) -> Path:
    return store.jobs_directory / job.id / "data" / name
