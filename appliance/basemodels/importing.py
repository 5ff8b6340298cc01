"""The import child's work: source in, `hf/` with safetensors, tokenizer and chat template out.

Untrusted files are parsed here, under resource limits, and never in the daemon. Does not know where base
models are kept nor how they are served.
"""

from __future__ import annotations

import contextlib
import resource
import shutil
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from appliance import batch, durable, gguf_header
from appliance.basemodels import chat, gguf_source, safetensors_header, source_directory
from appliance.child_records import ImportResult, ImportSpec
from appliance.errors import ApplianceError, InvalidInput
from appliance.records import SourceFile

HF = "hf"
_PARTIAL = "hf.partial"
# A two-bit file grows sixteenfold as float32; libraries take some GiB of address space before any work.
_GROWTH = 20
_LIBRARIES_BYTES = 8 << 30
_OPEN_FILES = 1024
MAX_CONTEXT_LENGTH = 1 << 30


def import_base_model(directory: Path, reporter: batch.Reporter) -> ImportResult:
    """Import what `spec.json` in `directory` names; raises InvalidInput if it cannot be trusted or used."""
    spec = durable.read_json(directory / batch.SPEC, ImportSpec)
    source = Path(spec.source)
    # Anything else, such as a pipe, could be waited on for ever.
    if not (source.is_dir() or source.is_file()):
        raise InvalidInput(
            "no_such_source", f"{source} should be a directory or a GGUF file; there is none"
        )
    _limit_resources(_size(source))
    transformers_logging.disable_progress_bar()
    partial, final = directory / _PARTIAL, directory / HF
    for leftover in (partial, final):
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        with _foreign_errors_as_refusal():
            stated_licence = _read(source, partial, reporter)
            if spec.chat_template is not None:
                chat.give_template(partial, spec.chat_template)
            chat.prepare(partial, reporter)
            result = _describe(partial, spec.licence or stated_licence)
        durable.publish_directory(partial, final)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    reporter.report("imported", f"imported {spec.name}: {result.parameters:,} parameters")
    return result


@contextlib.contextmanager
def _foreign_errors_as_refusal() -> Iterator[None]:
    """Whatever a library raises over foreign files, where it is not foreseen, means that they are refused.

    Libraries written in Rust raise what is no Exception when they give up.
    """
    try:
        yield
    except (ApplianceError, KeyboardInterrupt, SystemExit):
        raise
    except BaseException as exc:
        if durable.disk_failed(exc):
            raise
        if durable.no_room(exc):
            # One that a library in Rust raises is no Exception, and would pass those who look for them.
            raise durable.out_of_disk(str(exc)) from exc
        if isinstance(exc, MemoryError) or "allocate memory" in str(exc):
            raise InvalidInput(
                "model_too_large",
                f"the files should fit into the memory that an import may take, but: {exc}",
                next_step="import a smaller model, or safetensors instead of a GGUF",
            ) from exc
        traceback.print_exc()
        raise InvalidInput(
            "unreadable_model",
            f"the files should be readable as a model, but: {type(exc).__name__}: {exc}",
            next_step="copy them again and compare their digests with the publisher's",
        ) from exc


def _read(source: Path, hf: Path, reporter: batch.Reporter) -> str:
    """Fill `hf` from `source`; returns the licence that the source itself states."""
    reporter.report("read", f"reading {source.name}")
    if source.is_dir():
        for copied in source_directory.copy(source_directory.check(source), hf):
            reporter.report(f"copy:{copied.name}", f"copied {copied.name}")
        _check_weights(hf, reporter)
        return "unknown"
    header = gguf_header.read(source)
    gguf_source.convert(source, header, hf, reporter)
    return str(header.metadata.get("general.license", "unknown"))


def _check_weights(hf: Path, reporter: batch.Reporter) -> None:
    """Fit the weights' names and shapes to the configuration, so that what does not fit is refused here."""
    try:
        _, info = AutoModelForCausalLM.from_pretrained(
            hf,
            # No weight is read.
            device_map="meta",
            dtype="auto",
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except Exception as exc:
        # Whatever a parser of foreign files raises, it means that the files are refused.
        raise InvalidInput(
            "unreadable_model",
            f"the directory should hold a causal language model that transformers can load, but: {exc}",
            next_step="see whether this release knows the model's architecture",
        ) from exc
    if missing := sorted(info["missing_keys"]):
        raise InvalidInput(
            "incomplete_model",
            f"the weights should be complete; {len(missing)} tensors are missing: "
            + ", ".join(missing[:5]),
            next_step="copy the model's directory again, all shards included",
        )
    if strangers := sorted(info["unexpected_keys"]):
        reporter.report(
            "unused_weights",
            f"{len(strangers)} tensors belong to no part of this architecture, and are not used: "
            + ", ".join(strangers[:5]),
            level="warn",
        )


def _describe(hf: Path, licence: str) -> ImportResult:
    config: Any = AutoConfig.from_pretrained(hf, local_files_only=True, trust_remote_code=False)
    context_length = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not (isinstance(context_length, int) and 1 <= context_length <= MAX_CONTEXT_LENGTH):
        raise InvalidInput(
            "no_context_length",
            f"config.json should give max_position_embeddings from 1 to {MAX_CONTEXT_LENGTH}; "
            f"it gives {context_length!r}",
        )
    shards = sorted(hf.glob("*.safetensors"))
    sources = tuple(
        SourceFile(name=path.name, bytes=path.stat().st_size, sha256=durable.sha256_of(path))
        for path in sorted(hf.iterdir())
    )
    return ImportResult(
        architecture=config.architectures[0],
        parameters=sum(sum(safetensors_header.read(shard).values()) for shard in shards),
        context_length=context_length,
        licence=licence,
        sha256=durable.sha256_of_digests({each.name: each.sha256 for each in sources}),
        sources=sources,
    )


def _limit_resources(source_bytes: int) -> None:
    """Bound what a hostile file can make the libraries take."""
    grown = source_bytes * _GROWTH
    for limit, value in (
        (resource.RLIMIT_AS, grown + _LIBRARIES_BYTES),
        (resource.RLIMIT_FSIZE, grown + (1 << 30)),
        (resource.RLIMIT_NOFILE, _OPEN_FILES),
    ):
        _, hard = resource.getrlimit(limit)
        bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(limit, (bound, bound))


def _size(source: Path) -> int:
    files = source.iterdir() if source.is_dir() else (source,)
    return sum(path.stat().st_size for path in files if path.is_file())
