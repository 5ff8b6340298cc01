"""`/v1/fine_tuning/jobs`: create, list, retrieve, cancel, events."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import msgspec
from litestar import Controller, get, post
from litestar.params import Parameter
from litestar.status_codes import HTTP_200_OK

from appliance.api.openai.paging import Page
from appliance.hardware.fit.machine import Machine
from appliance.hardware.lease import Ledger
from appliance.hardware.profiles import HardwareProfile
from appliance.jobs.create import create as create_job
from appliance.jobs.plan import LEARNING_RATE
from appliance.jobs.request import FineTuningRequest
from appliance.jobs.runner import JobRunner
from appliance.jobs.watch import energy_of
from appliance.records import Job, JobEvent
from appliance.store.store import Store

# What makes an event one of metrics; others may carry data, too.
METRICS = frozenset({"train_loss", "valid_loss"})


class ErrorObject(msgspec.Struct):
    """OpenAI's job error; a healthy job shows one with nulls."""

    code: str | None = None
    message: str | None = None
    param: str | None = None


class JobObject(msgspec.Struct, kw_only=True):
    """OpenAI's FineTuningJob, with `appliance` beside it."""

    id: str
    created_at: int
    error: ErrorObject
    fine_tuned_model: str | None
    finished_at: int | None
    estimated_finish: int | None
    hyperparameters: dict[str, Any]
    method: dict[str, Any]
    model: str
    organization_id: str
    result_files: list[str]
    seed: int
    status: str
    trained_tokens: int | None
    training_file: str
    validation_file: str | None
    metadata: dict[str, str]
    integrations: list[Any]
    user_provided_suffix: str | None
    appliance: dict[str, Any]
    object: Literal["fine_tuning.job"] = "fine_tuning.job"


class EventObject(msgspec.Struct, kw_only=True):
    """OpenAI's FineTuningJobEvent."""

    id: str
    created_at: int
    level: str
    message: str
    type: str
    data: dict[str, Any] | None
    object: Literal["fine_tuning.job.event"] = "fine_tuning.job.event"


def to_wire(store: Store, job: Job) -> JobObject:
    """A job as OpenAI shows it; "auto" is replaced by what was chosen. Reads a file."""
    chosen = job.plan.hyperparameters
    hyperparameters = {
        "n_epochs": chosen.num_train_epochs,
        "batch_size": chosen.per_device_train_batch_size * chosen.gradient_accumulation_steps,
        "learning_rate_multiplier": chosen.learning_rate / LEARNING_RATE,
    }
    error = job.error
    return JobObject(
        id=job.id,
        created_at=job.created_at,
        error=ErrorObject(error.code, error.message, error.param) if error else ErrorObject(),
        fine_tuned_model=job.fine_tuned_model,
        finished_at=job.finished_at,
        estimated_finish=job.estimated_finish,
        hyperparameters=hyperparameters,
        method={"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        model=job.model,
        organization_id="local",
        result_files=[],
        seed=job.seed,
        status=job.status.value,
        trained_tokens=job.trained_tokens,
        training_file=job.training_file,
        validation_file=job.validation_file,
        metadata=job.metadata,
        integrations=[],
        user_provided_suffix=job.suffix,
        appliance={
            "requested": job.appliance,
            "plan": msgspec.to_builtins(job.plan),
            "energy": energy_of(store, job.id),
        },
    )


def event_to_wire(event: JobEvent) -> EventObject:
    """An event as OpenAI shows it."""
    return EventObject(
        id=event.id,
        created_at=event.created_at,
        level=event.level,
        message=event.message,
        type="metrics" if METRICS & (event.data or {}).keys() else "message",
        data=event.data,
    )


class FineTuningController(Controller):
    """OpenAI's fine-tuning jobs resource."""

    path = "/v1/fine_tuning/jobs"
    tags = ("fine-tuning",)

    @post("/", operation_id="createFineTuningJob", status_code=HTTP_200_OK)
    async def create(
        self,
        data: FineTuningRequest,
        store: Store,
        profile: HardwareProfile,
        machine: Machine,
        ledger: Ledger,
        runner: JobRunner,
    ) -> JobObject:
        """Store the job, which puts it into the queue; one that cannot fit the device is refused."""
        job = await asyncio.to_thread(create_job, store, profile, machine, ledger, data)
        runner.wake()
        return await asyncio.to_thread(to_wire, store, job)

    @get("/", operation_id="listPaginatedFineTuningJobs", sync_to_thread=True)
    def list(
        self,
        store: Store,
        after: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=100)] = 20,
    ) -> Page[JobObject]:
        """List jobs, newest first."""
        found, has_more = store.jobs.page(after=after, limit=limit)
        return Page([to_wire(store, job) for job in found], has_more)

    @get("/{job_id:str}", operation_id="retrieveFineTuningJob", sync_to_thread=True)
    def retrieve(self, store: Store, job_id: str) -> JobObject:
        """Describe one job."""
        return to_wire(store, store.jobs.get(job_id))

    @post("/{job_id:str}/cancel", operation_id="cancelFineTuningJob", status_code=HTTP_200_OK)
    async def cancel(self, store: Store, runner: JobRunner, job_id: str) -> JobObject:
        """Cancel a job; its processes are gone when this answers."""
        return await asyncio.to_thread(to_wire, store, await runner.cancel(job_id))

    @get("/{job_id:str}/events", operation_id="listFineTuningEvents", sync_to_thread=True)
    def events(
        self,
        store: Store,
        job_id: str,
        after: str | None = None,
        limit: Annotated[int, Parameter(ge=1, le=1000)] = 20,
    ) -> Page[EventObject]:
        """List a job's events, newest first."""
        found, has_more = store.jobs.events(job_id, after=after, limit=limit)
        return Page([event_to_wire(event) for event in found], has_more)
