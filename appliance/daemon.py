"""The composition root: the only place that builds everything and knows every part.

Imports neither torch nor llama_cpp; a test sees to that.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from datetime import UTC
from functools import partial
from pathlib import Path
from typing import Any

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from litestar import Litestar, Router
from litestar.di import Provide
from litestar.middleware import DefineMiddleware
from litestar.openapi import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin

from appliance import __version__, process, server, systemd
from appliance.api import auth, errors, health, listening, metrics, stopping
from appliance.api.appliance.aliases import AliasesController
from appliance.api.appliance.catalog import ModelDetailsController
from appliance.api.appliance.hardware import HardwareController
from appliance.api.appliance.imports import ImportsController
from appliance.api.appliance.keys import KeysController
from appliance.api.body_timeout import BodyTimeout
from appliance.api.openai.chat import ChatController
from appliance.api.openai.completions import CompletionsController
from appliance.api.openai.files import FilesController
from appliance.api.openai.fine_tuning import FineTuningController
from appliance.api.openai.model_list import ModelsController
from appliance.api.openai.upload_form import OVERHEAD_BYTES
from appliance.api.openai.uploads import UploadPartsController, UploadsController
from appliance.child_records import Programs
from appliance.engine import client as engine_client
from appliance.hardware import selection
from appliance.hardware.lease import DIRECTORY, Ledger, grant
from appliance.hardware.profiles import HardwareProfile
from appliance.hardware.sensors import Sensors
from appliance.jobs import deletion, import_request
from appliance.jobs.base_import import import_base
from appliance.jobs.course import Course
from appliance.jobs.import_queue import ImportQueue
from appliance.jobs.memory import Serving
from appliance.jobs.runner import JobRunner
from appliance.serving import names
from appliance.serving.aliases import Aliases
from appliance.serving.first_answer import answer_once
from appliance.serving.memory import adapter_budget_bytes, serving_bytes
from appliance.serving.router import Router as ModelRouter
from appliance.settings import Settings
from appliance.store.lock import lock_state_dir
from appliance.store.store import Store, create_state_dir

logger = logging.getLogger(__name__)

WORKER_THREADS = 32
IDLE_POLL_SECONDS = 10
UPLOADS_POLL_SECONDS = 600

OPENAPI = OpenAPIConfig(
    title="Fine-tuning appliance",
    version=__version__,
    # The others are pages that load from a public network.
    render_plugins=[JsonRenderPlugin()],
)
PROGRAMS = Programs(
    base_import=tuple(process.python_child("appliance.basemodels")),
    training=tuple(process.python_child("appliance.training")),
    release=tuple(process.python_child("appliance.release")),
    merge=tuple(process.python_child("appliance.release.merge")),
    engine=engine_client.PROGRAM,
)


def create_app(settings: Settings, programs: Programs = PROGRAMS) -> Litestar:
    """Build the application; its lifespan starts and stops everything else."""
    selected = selection.select(settings)
    selection.show_only_the_gpu(selected.device)
    profile, sensors = selected.profile, Sensors()
    store = Store(settings.state_dir, settings.storage_quota_bytes)
    store.keys.ensure_admin(settings.admin_key_file)
    store.files.delete_unused_blobs()
    store.uploads.remove_ended()
    deletion.remove_leftovers(store)
    import_request.remove_leftovers(store)
    ledger = Ledger(settings.state_dir / DIRECTORY, selected.machine.device_bytes)
    router = _model_router(settings, profile, store, programs, ledger)
    aliases = Aliases(store, router, max_waiting=settings.max_waiting_requests)
    course = Course(
        store=store,
        settings=settings,
        programs=programs,
        ledger=ledger,
        serving=Serving(
            partial(answer_once, router), router.unload, router.make_way, router.restore
        ),
        sensors=sensors,
        thermal_limit_celsius=profile.thermal_limit_celsius,
    )
    runner = JobRunner(store, course.run)
    counters = metrics.Metrics(
        jobs_by_status=store.jobs.count_by_status, router=router, ledger=ledger
    )

    imports = ImportQueue(store, partial(import_base, store, settings, selected, ledger, programs))
    work = server.Work(runner, imports, router, aliases)

    @asynccontextmanager
    async def lifespan(_app: Litestar) -> AsyncIterator[None]:
        # Requests that only read must not wait behind uploads that are being checked.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(WORKER_THREADS))
        runner.start()
        imports.start()
        timers = AsyncIOScheduler(timezone=UTC)
        timers.add_job(router.unload_idle, "interval", seconds=IDLE_POLL_SECONDS)
        # In a thread, as it is no coroutine.
        timers.add_job(store.uploads.remove_ended, "interval", seconds=UPLOADS_POLL_SECONDS)
        timers.start()
        _report(settings, selected, store)
        logger.info("ready", extra={"url": settings.url, "profile": profile.name})
        systemd.notify("READY=1")
        try:
            yield
        finally:
            timers.shutdown(wait=False)
            await work.stop()
            store.close()

    app = Litestar(
        route_handlers=_route_handlers(settings),
        guards=[auth.require_key, stopping.refuse_when_stopping],
        exception_handlers=dict(errors.HANDLERS),
        dependencies={
            name: _provide(value)
            for name, value in {
                "store": store,
                "settings": settings,
                "profile": profile,
                "machine": selected.machine,
                "ledger": ledger,
                "selected": selected,
                "sensors": sensors,
                "router": router,
                "aliases": aliases,
                "runner": runner,
                "imports": imports,
                "metrics": counters,
            }.items()
        },
        middleware=[
            DefineMiddleware(metrics.CountRequests, metrics=counters),
            DefineMiddleware(BodyTimeout, seconds=settings.body_timeout_seconds),
        ],
        lifespan=[lifespan],
        request_max_body_size=settings.max_request_bytes,
        openapi_config=OPENAPI,
        logging_config=None,
    )
    app.state.store = store
    app.state.work = work
    return app


def _route_handlers(settings: Settings) -> list[Any]:
    return [
        Router(
            "/",
            route_handlers=[FilesController],
            request_max_body_size=settings.max_upload_bytes + OVERHEAD_BYTES,
        ),
        UploadsController,
        UploadPartsController,
        FineTuningController,
        ModelsController,
        ChatController,
        CompletionsController,
        AliasesController,
        KeysController,
        ModelDetailsController,
        ImportsController,
        HardwareController,
        health.healthz,
        health.readyz,
        metrics.get_metrics,
    ]


def _report(settings: Settings, selected: selection.Selection, store: Store) -> None:
    for problem in selected.device.nvml.problems:
        logger.warning("NVML reports a problem", extra={"problem": problem})
    level = logging.INFO if selected.known else logging.WARNING
    found = {"profile": selected.profile.name, "reason": selected.reason}
    logger.log(level, "hardware profile chosen", extra=found)
    if not store.catalog.bases():
        logger.warning(
            "no base model is here yet, so nothing can be trained or asked: appliance models import",
            extra={"state_dir": settings.state_dir},
        )


def _provide(value: object) -> Provide:
    def provided() -> Any:
        return value

    return Provide(provided, sync_to_thread=False)


def _model_router(
    settings: Settings,
    profile: HardwareProfile,
    store: Store,
    programs: Programs,
    ledger: Ledger,
) -> ModelRouter:
    async def resolve(name: str) -> names.Target:
        return await asyncio.to_thread(names.target, store.directory, store.catalog.get, name)

    async def launch(name: str, path: Path) -> engine_client.Engine:
        size_bytes = await asyncio.to_thread(serving_bytes, store, profile, name, path)
        budget_bytes = await asyncio.to_thread(adapter_budget_bytes, store, name, path)
        with await grant(ledger, name, "serving", size_bytes) as lease:
            return await engine_client.start(
                name,
                path,
                n_ctx=profile.n_ctx,
                threads=settings.thread_count,
                slots=profile.slots,
                adapter_budget_bytes=budget_bytes,
                stall_seconds=settings.engine_stall_seconds,
                program=programs.engine,
                pass_fds=(lease.descriptor,),
            )

    return ModelRouter(
        resolve=resolve,
        launch=launch,
        max_loaded=profile.max_loaded_models,
        max_waiting=settings.max_waiting_requests,
        idle_seconds=settings.engine_idle_seconds,
    )


async def serve(settings: Settings, programs: Programs = PROGRAMS) -> None:
    """Run the daemon until SIGTERM or SIGINT."""
    # Until the loop takes over: an end in the midst of starting must empty the lock file, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    create_state_dir(settings.state_dir)
    lock = lock_state_dir(settings.state_dir)
    try:
        listening.check_address(settings)
        listening.raise_file_limit()
        app = create_app(settings, programs)
        await server.run(app, settings, lock)
    finally:
        # Somebody may kill what the file names, and the number may be another's by then.
        lock.truncate(0)
        lock.close()
