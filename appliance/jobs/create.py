"""Creates a job from a request: resolves its model and files, makes its plan, stores it."""

from __future__ import annotations

import secrets
import time

import msgspec

from appliance.errors import InvalidInput
from appliance.hardware import stored_base
from appliance.hardware.fit.machine import Machine
from appliance.hardware.lease import Ledger, serving_bytes
from appliance.hardware.profiles import HardwareProfile
from appliance.jobs import fitting, plan, specs
from appliance.jobs.request import FineTuningRequest
from appliance.jobs.runner import new_job_id
from appliance.records import BaseModel, Job, JobStatus, Release, StoredFile
from appliance.store.store import Store

TRAINING_PURPOSE = "fine-tune"
# Where a base model's directory holds safetensors, tokenizer and configuration.
HF = "hf"


def create(
    store: Store,
    profile: HardwareProfile,
    machine: Machine,
    ledger: Ledger,
    request: FineTuningRequest,
) -> Job:
    """Store a new job with its data; durable when this returns. Blocks.

    Raises NotFound for an unknown model or file, InvalidInput for what cannot be done or does not fit.
    """
    model = store.aliases.model_of(request.model)
    base, initial_adapter = starting_point(store, model)
    train = training_file(store, request.training_file, "training_file")
    validation = (
        training_file(store, request.validation_file, "validation_file")
        if request.validation_file
        else None
    )
    chosen = plan.make(
        request, profile, base=base, initial_adapter=initial_adapter, rows=train.rows or 0
    )
    chosen, memory = fitting.fit(
        chosen,
        request.appliance.advanced,
        stored_base.read(store.directory / base.directory / HF),
        fitting.data_facts(
            [train, validation] if validation else [train], chosen.hyperparameters.max_length
        ),
        machine,
        serving_bytes(ledger.holdings()),
        min(profile.n_ctx, base.context_length),
    )
    job = Job(
        id=new_job_id(),
        created_at=int(time.time()),
        model=model,
        training_file=train.id,
        validation_file=validation.id if validation else None,
        seed=secrets.randbelow(1 << 31) if request.seed is None else request.seed,
        suffix=request.suffix,
        metadata=request.metadata or {},
        method=msgspec.to_builtins(request.method),
        appliance=msgspec.to_builtins(request.appliance),
        plan=chosen,
        status=JobStatus.VALIDATING_FILES,
    )
    try:
        specs.stage_data(store, job.id, train, validation)
        store.jobs.add(job, f"Created fine-tuning job: {job.id}", memory)
    except BaseException:
        specs.discard_data(store, job.id)
        raise
    return job


def starting_point(store: Store, name: str) -> tuple[BaseModel, plan.InitialAdapter | None]:
    """The base, and the adapter to go on from when `name` is an earlier fine-tuned model."""
    model = store.catalog.get(name)
    if not isinstance(model, Release):
        return model, None
    earlier = store.jobs.get(model.job_id).plan.hyperparameters
    adapter = plan.InitialAdapter(model.adapter_directory, earlier.r, earlier.lora_alpha)
    return store.catalog.get_base(model.base_model), adapter


def training_file(store: Store, file_id: str, param: str) -> StoredFile:
    """The file, if it holds training rows; `param` is what the request calls it."""
    file = store.files.find(file_id)
    if file is None:
        raise InvalidInput("invalid_file", f"No such file: {file_id!r}", param=param)
    if file.purpose != TRAINING_PURPOSE:
        raise InvalidInput(
            "invalid_file_purpose",
            f"{param} should have purpose {TRAINING_PURPOSE!r}; {file_id} has {file.purpose!r}",
            param=param,
            next_step="upload it again with the right purpose",
        )
    return file
