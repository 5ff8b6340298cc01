"""Imports a base model: checked and rewritten by the import child, made servable by the release child.

Making it servable takes its share of the device's memory, as a job's release does. The model appears in one
step at the end: its directory by rename, then its row in the catalogue. A name keeps its meaning as long as
the model is there, because adapters and releases refer to their base by it.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import re
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import msgspec

from appliance import durable
from appliance.child_records import (
    CONFIGURATION,
    ImportResult,
    ImportSpec,
    Programs,
    Progress,
    ReleaseResult,
    ReleaseSpec,
)
from appliance.errors import InvalidInput, WrongState
from appliance.hardware import stored_base
from appliance.hardware.fit import needs
from appliance.hardware.fit.machine import GIB, Machine
from appliance.hardware.lease import Ledger, grant
from appliance.hardware.profiles import HardwareProfile
from appliance.hardware.selection import Selection
from appliance.jobs import scratch, stages
from appliance.jobs.memory import waited_for
from appliance.records import BaseModel
from appliance.settings import Settings
from appliance.store.store import Store

T = TypeVar("T")
P = ParamSpec("P")
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")


async def import_base(
    store: Store,
    settings: Settings,
    selected: Selection,
    ledger: Ledger,
    programs: Programs,
    spec: ImportSpec,
    on_progress: Callable[[list[Progress]], None],
) -> BaseModel:
    """Import `spec.source` under `spec.name`; the same content under the same name is left as it is.

    Raises InvalidInput for a bad name or source and for a model that is too large for this device, WrongState
    if the name belongs to another model or to an alias, Busy if another import is under way. Memory that
    others hold is waited for.
    """
    check_name(spec.name)
    await asyncio.to_thread(store.catalog.check_base_name, spec.name)
    with scratch.one_at_a_time(store, "import") as work:
        imported = await stages.run(
            f"import of {spec.name}",
            programs.base_import,
            work / "import",
            spec,
            ImportResult,
            on_progress=on_progress,
            stall_timeout_seconds=settings.stall_timeout_seconds,
        )
        known = await asyncio.to_thread(_known, store, spec, imported)
        if known is not None:
            return known
        await asyncio.to_thread(_check_quota, store, imported, 0)
        size_bytes = _conversion_bytes(work / "import" / "hf", spec.name, selected.machine)

        async def say(message: str) -> None:
            on_progress([Progress(key="waiting", message=message, level="warn")])

        take = functools.partial(grant, ledger, f"import of {spec.name}", "release", size_bytes)
        with await waited_for(take, say) as lease:
            released = await stages.run(
                f"release of {spec.name}",
                programs.release,
                work / "release",
                _release_spec(settings, selected.profile, spec, work),
                ReleaseResult,
                on_progress=on_progress,
                stall_timeout_seconds=settings.stall_timeout_seconds,
                pass_fds=(lease.descriptor,),
            )
        return await _to_its_end(_publish, store, spec, imported, released, work)


async def _to_its_end(work: Callable[P, T], *args: P.args, **options: P.kwargs) -> T:
    """Run it in a thread, to its end: what it works on is removed afterwards, so it is too late to cancel."""
    running = asyncio.ensure_future(asyncio.to_thread(work, *args, **options))
    while not running.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.wait({running})
    return running.result()


def check_name(name: str) -> None:
    """Raise InvalidInput unless a base model may be called so."""
    if not NAME.fullmatch(name):
        raise InvalidInput(
            "invalid_model_name",
            f"a base model's name should match {NAME.pattern}; found {name!r}",
            param="name",
        )


def _conversion_bytes(hf: Path, name: str, machine: Machine) -> int:
    """Of the device's memory; 0 where it is the host's alone, or cannot be told."""
    shape = stored_base.read(hf)
    if shape is None:
        return 0
    needed = needs.conversion_bytes(shape)
    if needed > machine.host_bytes:
        raise InvalidInput(
            "does_not_fit",
            f"converting {name} needs {needed / GIB:.2f} GiB of memory; this device has "
            f"{machine.host_bytes / GIB:.2f} GiB for it",
            param="source",
            next_step="choose a smaller model; `appliance models recommend` names some",
        )
    return 0 if machine.family == "discrete" else needed


def _check_quota(store: Store, imported: ImportResult, more_bytes: int) -> None:
    """What was uploaded is there already, and will not be there twice."""
    added = (each for each in imported.sources if not store.files.has_content(each.sha256))
    store.quota.check(sum(each.bytes for each in added) + more_bytes)


def _known(store: Store, spec: ImportSpec, imported: ImportResult) -> BaseModel | None:
    """The same model from an earlier import, unless its files are damaged or gone."""
    base = store.catalog.find_base(spec.name)
    if base is None:
        return None
    if base.sha256 != imported.sha256:
        raise WrongState(
            "model_exists",
            f"{spec.name!r} should be a new name, or the same model again; "
            f"it is one with digest {base.sha256[:12]}, and this one has {imported.sha256[:12]}",
            param="name",
            next_step="import it under another name",
        )
    return base if _is_whole(store, base) else None


def _is_whole(store: Store, base: BaseModel) -> bool:
    """Whether every file still is what was imported."""
    try:
        return durable.sha256_of_directory(
            store.directory / base.directory / "hf"
        ) == base.sha256 and all(
            durable.sha256_of(store.directory / file.path) == file.sha256 for file in base.files
        )
    except FileNotFoundError:
        return False


def _release_spec(
    settings: Settings, profile: HardwareProfile, spec: ImportSpec, work: Path
) -> ReleaseSpec:
    return ReleaseSpec(
        model_name=spec.name,
        base_directory=str(work / "import" / "hf"),
        trained=None,
        converter_directory=str(settings.converter_dir),
        # The base is served in the quantization that releases are served in, so that they compare.
        quantizations=profile.quantizations[:1],
        threads=settings.thread_count,
    )


def _publish(
    store: Store, spec: ImportSpec, imported: ImportResult, released: ReleaseResult, work: Path
) -> BaseModel:
    final, staged = store.base_models_directory / spec.name, work / "final"
    staged.mkdir()
    (work / "import" / "hf").rename(staged / "hf")
    files = []
    for file in released.files:
        name = Path(file.path).name
        Path(file.path).rename(staged / name)
        relative = (final / name).relative_to(store.directory)
        files.append(msgspec.structs.replace(file, path=str(relative)))
    _check_quota(store, imported, sum(file.bytes for file in released.files))
    for source in imported.sources:
        store.files.share_content(staged / "hf" / source.name, source.sha256)
    with contextlib.suppress(FileNotFoundError):
        (work / "release" / CONFIGURATION).rename(staged / CONFIGURATION)
    base = BaseModel(
        name=spec.name,
        created_at=int(time.time()),
        architecture=imported.architecture,
        parameters=imported.parameters,
        context_length=imported.context_length,
        licence=imported.licence,
        source=spec.origin,
        sha256=imported.sha256,
        directory=str(final.relative_to(store.directory)),
        files=tuple(files),
        sources=imported.sources,
    )
    durable.write_json(staged / "manifest.json", base)
    if final.exists():
        # Of an import that was killed before the model was in the catalogue, or what is left of its files.
        shutil.rmtree(final)
    durable.publish_directory(staged, final)
    try:
        store.catalog.put_base(base)
    except WrongState:
        # An alias took the name meanwhile.
        shutil.rmtree(final)
        raise
    return base
