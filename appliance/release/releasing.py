"""The release child's work: base (and adapter) in, one checked GGUF file per quantization out, and one of
the adapter alone.

Everything unfinished lies in one subdirectory, removed at the start and at the end; a model gets its final
name only after it has passed every check (an adapter only those of llama.cpp's converter). Running again
after a kill simply starts over.
"""

from __future__ import annotations

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import torch

from appliance import batch, durable, versions
from appliance.child_records import (
    CONFIGURATION,
    ReleaseResult,
    ReleaseSpec,
    Trained,
    TrainedBehaviour,
)
from appliance.records import GgufFile, Parity, Quantization, ReleaseFile
from appliance.release import (
    adapter,
    adapter_conversion,
    base_conversion,
    checks,
    converter,
    llamacpp,
    parity,
    streaming,
    unmerged,
)

INTERMEDIATE = "intermediate"
ADAPTER_FILE = "adapter.gguf"
# How often the merge says how far it has come.
_TENTHS = 10


class _Made(NamedTuple):
    """A finished file, not in its final place yet."""

    path: Path
    parity: Parity | None


class _Steps:
    """Reports each step as it begins, and which of how many it is."""

    def __init__(self, total: int, reporter: batch.Reporter) -> None:
        self._reporter = reporter
        self._begun = 0
        self._total = total

    def begin(self, key: str, message: str) -> None:
        self._begun += 1
        data = {"step": self._begun, "total_steps": self._total}
        self._reporter.report(key, message, data=data)


def release(directory: Path, reporter: batch.Reporter) -> ReleaseResult:
    """Make what `spec.json` in `directory` asks for; raises ApplianceError if any check fails."""
    started = time.monotonic()
    spec = durable.read_json(directory / batch.SPEC, ReleaseSpec)
    torch.set_num_threads(spec.threads)
    work = directory / INTERMEDIATE
    shutil.rmtree(work, ignore_errors=True)
    # Of a predecessor that ended before it could say that they are complete.
    _remove_models(directory)
    work.mkdir()
    try:
        with llamacpp.log_to(reporter.alive):
            if spec.trained is None:
                made = _base(spec, directory, work, reporter)
            else:
                made = _fine_tuned(spec, spec.trained, work, reporter)
            files = tuple(
                ReleaseFile(
                    quantization=quantization, parity=each.parity, **_keep(each.path, directory)
                )
                for quantization, each in made.items()
            )
            alone = work / ADAPTER_FILE
            adapter_file = GgufFile(**_keep(alone, directory)) if alone.exists() else None
    except BaseException:
        # Those that were finished before the rest failed.
        _remove_models(directory)
        raise
    finally:
        shutil.rmtree(work)
    seconds = time.monotonic() - started
    return ReleaseResult(
        files=files, seconds=seconds, adapter_file=adapter_file, versions=versions.installed()
    )


def _remove_models(directory: Path) -> None:
    for path in directory.glob("*.gguf"):
        path.unlink()


def _base(
    spec: ReleaseSpec, directory: Path, work: Path, reporter: batch.Reporter
) -> dict[Quantization, _Made]:
    """The base as it is: converted whole, then quantized, by llama.cpp's own programs."""
    steps = _Steps(1 + 2 * len(spec.quantizations), reporter)
    base = Path(spec.base_directory)
    _check_space(work, base_conversion.bytes_needed(base, spec.quantizations))
    steps.begin("convert", "converting to GGUF")
    float_file = work / "float.gguf"
    base_conversion.convert(base, float_file, spec.model_name, Path(spec.converter_directory))
    tokenizer = _tokenizer(spec)
    converter.write_configuration(Path(spec.converter_directory), base, directory / CONFIGURATION)
    made = {}
    for quantization in spec.quantizations:
        path = work / _file_name(quantization)
        steps.begin(f"quantize:{quantization}", f"quantizing to {quantization}")
        llamacpp.quantize(float_file, path, quantization, threads=spec.threads)
        _check(spec, quantization, path, tokenizer, steps)
        made[quantization] = _Made(path, None)
    return made


def _fine_tuned(
    spec: ReleaseSpec, trained: Trained, work: Path, reporter: batch.Reporter
) -> dict[Quantization, _Made]:
    """Base and adapter: merged and quantized tensor by tensor, and the adapter alone beside it."""
    steps = _Steps(3 + 2 * len(spec.quantizations), reporter)
    directory, base = Path(trained.adapter_directory), Path(spec.base_directory)
    behaviour = durable.read_json(Path(trained.behaviour_file), TrainedBehaviour)
    sources = streaming.Sources(
        base=base,
        pairs=adapter.read(directory),
        converter_directory=Path(spec.converter_directory),
    )
    parity.check_adapter(sources.pairs, behaviour)
    layouts = streaming.layouts(Path(trained.base_file), spec.quantizations, spec.model_name)
    needed = sum(each.file_bytes for each in layouts.values())
    _check_space(work, needed + adapter_conversion.bytes_needed(directory))
    paths = {quantization: work / _file_name(quantization) for quantization in layouts}
    configuration = Path(trained.base_file).with_name(CONFIGURATION)
    with converter.configured(sources.converter_directory, configuration):
        # Before the long work, since it is cheap: what it refuses fails early.
        steps.begin("adapter", "converting the adapter alone")
        adapter_conversion.convert(
            directory, sources.pairs, base, work / ADAPTER_FILE, sources.converter_directory
        )
        steps.begin("merge", f"merging the adapter and quantizing to {', '.join(layouts)}")
        streaming.write(
            sources,
            {paths[quantization]: layout for quantization, layout in layouts.items()},
            threads=spec.threads,
            on_tensor=_tells_tenths(len(next(iter(layouts.values())).tensors), reporter),
        )
    pairs = len(sources.pairs)
    reporter.report("merged", f"merged {pairs} LoRA pairs", data={"lora_pairs": pairs})
    steps.begin("unmerged", "asking the base with the adapter attached")
    beside = unmerged.of(
        Path(trained.base_file),
        work / ADAPTER_FILE,
        behaviour.answers,
        threads=spec.threads,
        alive=reporter.alive,
    )
    tokenizer = _tokenizer(spec)
    made = {}
    for quantization, path in paths.items():
        _check(spec, quantization, path, tokenizer, steps)
        steps.begin(f"compare:{quantization}", f"comparing {path.name} with the trained model")
        found = parity.check(
            path,
            behaviour,
            beside,
            quantization,
            tokenizer,
            threads=spec.threads,
            alive=reporter.alive,
        )
        reporter.report(
            f"parity:{quantization}",
            parity.describe(found, quantization, behaviour, beside),
            data=msgspec.to_builtins(found),
        )
        if parity.blames_adapter(found, quantization, beside):
            reporter.report(
                f"adapter:{quantization}",
                "The release does as trained, and base and adapter side by side do not: llama.cpp applies "
                "adapters to this architecture in part only. There will be none to attach",
                level="warn",
            )
            (work / ADAPTER_FILE).unlink(missing_ok=True)
        made[quantization] = _Made(path, found)
    return made


def _tells_tenths(total: int, reporter: batch.Reporter) -> Callable[[str], None]:
    """Called for each of `total` tensors, it shows life, and at each tenth says so."""
    done = itertools.count(1)

    def on_tensor(name: str) -> None:
        reporter.alive()
        count = next(done)
        if count * _TENTHS // total > (count - 1) * _TENTHS // total:
            reporter.report(
                f"merge:{count}", f"{count} of {total} tensors are merged and quantized"
            )

    return on_tensor


def _tokenizer(spec: ReleaseSpec) -> Any:
    # Late, since it takes as long as a small model's merge.
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(spec.base_directory, local_files_only=True)


def _check(
    spec: ReleaseSpec, quantization: Quantization, path: Path, tokenizer: Any, steps: _Steps
) -> None:
    steps.begin(f"check:{quantization}", f"checking {path.name} against the base model")
    checks.check(
        path,
        tokenizer,
        end_of_turn_token_id=spec.trained.end_of_turn_token_id if spec.trained else None,
        threads=spec.threads,
    )


def _keep(unchecked: Path, directory: Path) -> dict[str, Any]:
    """Give a finished file its final place, durably; what a GgufFile says of it."""
    final = directory / unchecked.name
    durable.fsync_path(unchecked)
    unchecked.replace(final)
    durable.fsync_path(directory)
    return {
        "path": str(final),
        "bytes": final.stat().st_size,
        "sha256": durable.sha256_of(final),
    }


def _check_space(work: Path, needed: int) -> None:
    available = shutil.disk_usage(work).free
    if needed > available:
        raise durable.out_of_disk(
            f"a release needs {needed / 2**30:.1f} GiB of free space; "
            f"there are {available / 2**30:.1f} GiB",
        )


def _file_name(quantization: Quantization) -> str:
    return f"model-{quantization}.gguf"
