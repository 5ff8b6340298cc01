"""The release child's work: base (and adapter) in, one checked GGUF file per quantization out, and one of
the adapter alone.

Everything unfinished lies in one subdirectory, removed at the start and at the end; a model gets its final
name only after it has passed every check (an adapter only those of llama.cpp's converter). Running again
after a kill simply starts over.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import torch

from appliance import batch, durable, versions
from appliance.child_records import CONFIGURATION, ReleaseResult, ReleaseSpec
from appliance.records import GgufFile, Quantization, ReleaseFile
from appliance.release import base_conversion, converter, fine_tuned, llamacpp, making
from appliance.release.fine_tuned import ADAPTER_FILE
from appliance.release.making import Made

INTERMEDIATE = "intermediate"


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
                made = fine_tuned.make(spec, spec.trained, work, reporter)
            files = tuple(
                ReleaseFile(
                    quantization=quantization,
                    parity=each.parity,
                    importance=each.importance,
                    **_keep(each.path, directory),
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
) -> dict[Quantization, Made]:
    """The base as it is: converted whole, then quantized, by llama.cpp's own programs."""
    steps = making.Steps(1 + 2 * len(spec.quantizations), reporter)
    base = Path(spec.base_directory)
    making.check_space(work, base_conversion.bytes_needed(base, spec.quantizations))
    steps.begin("convert", "converting to GGUF")
    float_file = work / "float.gguf"
    base_conversion.convert(base, float_file, spec.model_name, Path(spec.converter_directory))
    tokenizer = making.load_tokenizer(spec)
    converter.write_configuration(Path(spec.converter_directory), base, directory / CONFIGURATION)
    made = {}
    for quantization in spec.quantizations:
        path = work / making.file_name(quantization)
        steps.begin(f"quantize:{quantization}", f"quantizing to {quantization}")
        llamacpp.quantize(float_file, path, quantization, threads=spec.threads)
        making.check(spec, quantization, path, tokenizer, steps)
        made[quantization] = Made(path)
    return made


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
