"""Takes a fine-tuned model out of the box: its files, where it came from, and digests of it all.

All goes into one directory, which appears in one step, when it is durable. Knows the texts of no document.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import msgspec

from appliance import durable, gguf_header
from appliance.child_records import (
    MergeResult,
    MergeSpec,
    Programs,
    Progress,
    ReleaseResult,
    TrainingResult,
)
from appliance.errors import InvalidInput, WrongState
from appliance.exports import card, ml_bom, modelfile
from appliance.exports.provenance import DataUsed, Provenance, Written
from appliance.gguf_header import GgufHeader
from appliance.hardware.lease import Ledger
from appliance.jobs import scratch, specs, stages
from appliance.prompts import ChatTemplate
from appliance.records import BaseModel, ExportForm, Job, Release
from appliance.settings import Settings
from appliance.store.store import Store

HOLDER = "export"
MERGED = "merged"
_CARD = "README.md"
OnProgress = Callable[[list[Progress]], None]


async def export(
    store: Store,
    settings: Settings,
    ledger: Ledger,
    programs: Programs,
    name: str,
    destination: Path,
    forms: Collection[ExportForm],
    on_progress: OnProgress,
) -> Path:
    """Write release `name` into the new directory `destination`.

    Raises NotFound or InvalidInput for what is no release, WrongState if `destination` is there, OutOfDisk if
    it has no room, NoMemory if others hold what merging takes, Busy if another export is under way.
    """
    release = await asyncio.to_thread(_release, store, name)
    if await asyncio.to_thread(destination.exists):
        raise WrongState(
            "destination_exists",
            f"the model should go into a new directory; {destination} is there already",
            next_step="name another one, or remove it",
        )
    known = await asyncio.to_thread(provenance, store, release)
    incoming = destination.with_name(f".{destination.name}.incoming")
    with (
        durable.full_disk_as_error(str(destination.parent)),
        scratch.one_at_a_time(store, HOLDER) as work,
    ):
        shutil.rmtree(incoming, ignore_errors=True)
        try:
            _check_space(store, known, destination.parent, forms)
            incoming.mkdir()
            if ExportForm.MERGED in forms:
                into = incoming / MERGED
                await _merge(store, settings, ledger, programs, known, into, work, on_progress)
            await asyncio.to_thread(_fill, store, known, incoming, forms, on_progress)
            await asyncio.to_thread(durable.publish_directory, incoming, destination)
        finally:
            shutil.rmtree(incoming, ignore_errors=True)
    return destination


def provenance(store: Store, release: Release) -> Provenance:
    """Everything that is known of how `release` came about."""
    job = store.jobs.get(release.job_id)
    earlier = tuple(_earlier_jobs(store, job))
    directory = store.jobs_directory / job.id
    training = durable.read_json(directory / "training" / "result.json", TrainingResult)
    released = durable.read_json(directory / "release" / "result.json", ReleaseResult)
    return Provenance(
        release=release,
        base=store.catalog.get_base(release.base_model),
        job=job,
        earlier_jobs=earlier,
        data=tuple(used for each in (job, *earlier) for used in _data(store, each)),
        training=training,
        versions={**training.versions, **released.versions},
    )


def _earlier_jobs(store: Store, job: Job) -> Iterator[Job]:
    """Those whose adapter it went on from, the nearest first."""
    while (adapter := job.plan.initial_adapter) is not None:
        job = store.jobs.get(specs.job_of_adapter(adapter))
        yield job


def _data(store: Store, job: Job) -> Iterator[DataUsed]:
    for file_name, file_id, use in (
        (specs.TRAIN_FILE, job.training_file, "training"),
        (specs.VALIDATION_FILE, job.validation_file, "validation"),
    ):
        path = store.jobs_directory / job.id / "data" / file_name
        if file_id is None:
            continue
        used = DataUsed(id=file_id, job_id=job.id, use=use)
        if path.exists():
            with path.open("rb") as file:
                rows = sum(1 for line in file if line.strip())
            digest = durable.sha256_of(path)
            used = msgspec.structs.replace(
                used, bytes=path.stat().st_size, rows=rows, sha256=digest
            )
        yield used


def _release(store: Store, name: str) -> Release:
    found = store.catalog.get(name)
    if isinstance(found, BaseModel):
        raise InvalidInput(
            "not_fine_tuned",
            f"a fine-tuned model can be exported; {name!r} is a base model",
            param="name",
            next_step="take it from where it was imported from",
        )
    return found


def _check_space(
    store: Store, known: Provenance, directory: Path, forms: Collection[ExportForm]
) -> None:
    base = _base_directory(store, known)
    needed = sum(path.stat().st_size for path, _ in _copies(store, known, forms))
    if ExportForm.MERGED in forms:
        needed += sum(path.stat().st_size for path in base.iterdir())
    available = shutil.disk_usage(directory).free
    if needed > available:
        raise durable.out_of_disk(
            f"that is {needed / 2**30:.2f} GiB, and it has {available / 2**30:.2f} GiB",
            str(directory),
        )


def _fill(
    store: Store,
    known: Provenance,
    incoming: Path,
    forms: Collection[ExportForm],
    on_progress: OnProgress,
) -> None:
    for source, relative in _copies(store, known, forms):
        on_progress([Progress(key=f"copy:{relative}", message=f"copying {relative}")])
        target = incoming / relative
        target.parent.mkdir(exist_ok=True)
        shutil.copyfile(source, target)
    if ExportForm.GGUF in forms:
        (incoming / "Modelfile").write_text(_modelfile(store, known), encoding="utf-8")
    if (base_card := incoming / MERGED / _CARD).exists():
        # Who opens the directory should read of this model.
        base_card.rename(base_card.with_name("BASE_README.md"))
    _write_documents(known, incoming)


def _write_documents(known: Provenance, incoming: Path) -> None:
    """Of everything that is there by now."""
    released = {f"model-{file.quantization}.gguf": file for file in known.release.files}
    files = [
        Written(
            name=name,
            bytes=path.stat().st_size,
            sha256=durable.sha256_of(path),
            released=released.get(name),
        )
        for name, path in _files(incoming)
    ]
    text = card.markdown(known, files)
    for directory in (incoming, incoming / MERGED):
        if directory.exists():
            (directory / _CARD).write_text(text, encoding="utf-8")
    bom = msgspec.json.format(msgspec.json.encode(ml_bom.document(known, files)), indent=2)
    (incoming / "mlbom.cdx.json").write_bytes(bom + b"\n")
    sums = [f"{durable.sha256_of(path)}  {name}\n" for name, path in _files(incoming)]
    (incoming / "SHA256SUMS").write_text("".join(sums), encoding="utf-8")


def _files(directory: Path) -> list[tuple[str, Path]]:
    paths = sorted(path for path in directory.rglob("*") if path.is_file())
    return [(str(path.relative_to(directory)), path) for path in paths]


def _copies(
    store: Store, known: Provenance, forms: Collection[ExportForm]
) -> Iterator[tuple[Path, Path]]:
    """Files as they are, and where they go."""
    release = known.release
    if ExportForm.GGUF in forms:
        for file in release.files:
            yield store.directory / file.path, Path(f"model-{file.quantization}.gguf")
    if ExportForm.ADAPTER in forms:
        for path in sorted((store.directory / release.adapter_directory).iterdir()):
            yield path, Path("adapter", path.name)
        if release.adapter_file is not None:
            yield store.directory / release.adapter_file.path, Path("adapter.gguf")


async def _merge(
    store: Store,
    settings: Settings,
    ledger: Ledger,
    programs: Programs,
    known: Provenance,
    destination: Path,
    work: Path,
    on_progress: OnProgress,
) -> None:
    spec = MergeSpec(
        base_directory=str(_base_directory(store, known)),
        adapter_directory=str(store.directory / known.release.adapter_directory),
        destination=str(destination),
        threads=settings.thread_count,
    )
    with ledger.grant(HOLDER, "release", known.job.plan.release_bytes or 0) as lease:
        await stages.run(
            f"merge of {known.release.name}",
            programs.merge,
            work / "merge",
            spec,
            MergeResult,
            on_progress=on_progress,
            stall_timeout_seconds=settings.stall_timeout_seconds,
            pass_fds=(lease.descriptor,),
        )


def _base_directory(store: Store, known: Provenance) -> Path:
    return store.directory / known.base.directory / "hf"


def _modelfile(store: Store, known: Provenance) -> str:
    file = known.release.files[0]
    header = gguf_header.read(store.directory / file.path)
    end = header.metadata["tokenizer.ggml.eos_token_id"]
    return modelfile.modelfile(
        f"model-{file.quantization}.gguf",
        _chat_template(header),
        [header.metadata["tokenizer.ggml.tokens"][end]],
        known.base.licence,
    )


def _chat_template(header: GgufHeader) -> ChatTemplate | None:
    """As it stands in the file, with the beginning that its reader does not add by itself; None where it is
    not known whether it does."""
    metadata = header.metadata
    source = metadata["tokenizer.chat_template"]
    # Where the file says nothing, llama.cpp decides by the kind of vocabulary (src/llama-vocab.cpp).
    is_sentencepiece = metadata["tokenizer.ggml.model"] == "llama"
    adds_bos = metadata.get("tokenizer.ggml.add_bos_token", True if is_sentencepiece else None)
    if adds_bos is None and "bos_token" in source:
        return None

    def token(which: str) -> str:
        token_id = metadata.get(f"tokenizer.ggml.{which}_token_id")
        return "" if token_id is None else str(metadata["tokenizer.ggml.tokens"][token_id])

    bos_token = "" if adds_bos else token("bos")
    return ChatTemplate(source, bos_token=bos_token, eos_token=token("eos"))
