"""The release child's work: base (and adapter) in, one checked GGUF file per quantization out, and one of
the adapter alone.

Everything unfinished lies in one subdirectory, removed at the start and at the end; a model gets its final
name only after it has passed every check (an adapter only those of llama.cpp's converter). Running again
after a kill simply starts over.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import AutoTokenizer
from transformers.utils import logging as transformers_logging

from appliance import batch, durable, process
from appliance.errors import ChildFailed, ConfigurationError
from appliance.records import GgufFile, Quantization, ReleaseFile, ReleaseResult, ReleaseSpec
from appliance.release import checks, llamacpp, merge

INTERMEDIATE = "intermediate"
CONVERTER = "convert_hf_to_gguf.py"
ADAPTER_CONVERTER = "convert_lora_to_gguf.py"
ADAPTER_FILE = "adapter.gguf"
# Upper bounds of what a weight takes in a file, small models' fallback types included.
BITS_PER_WEIGHT = {Quantization.Q4_K_M: 7.5, Quantization.Q8_0: 9.0}
# What a GGUF holds beside weights: the vocabulary, mostly.
METADATA_BYTES = 32 << 20


class _Steps:
    """Reports each step as it begins, and which of how many it is."""

    def __init__(self, spec: ReleaseSpec, reporter: batch.Reporter) -> None:
        self._reporter = reporter
        self._begun = 0
        adapting = spec.adapter_directory is not None
        # The adapter is merged, and converted by itself.
        self._total = 2 * adapting + 1 + 2 * len(spec.quantizations)

    def begin(self, key: str, message: str) -> None:
        self._begun += 1
        data = {"step": self._begun, "total_steps": self._total}
        self._reporter.report(key, message, data=data)


def release(directory: Path, reporter: batch.Reporter) -> ReleaseResult:
    """Make what `spec.json` in `directory` asks for; raises ApplianceError if any check fails."""
    started = time.monotonic()
    spec = durable.read_json(directory / batch.SPEC, ReleaseSpec)
    torch.set_num_threads(spec.threads)
    transformers_logging.disable_progress_bar()
    work = directory / INTERMEDIATE
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        with llamacpp.log_to(reporter.alive):
            files, adapter_file = _make(spec, directory, work, reporter)
    finally:
        shutil.rmtree(work)
    seconds = time.monotonic() - started
    return ReleaseResult(files=files, seconds=seconds, adapter_file=adapter_file)


def _make(
    spec: ReleaseSpec, directory: Path, work: Path, reporter: batch.Reporter
) -> tuple[tuple[ReleaseFile, ...], GgufFile | None]:
    base = Path(spec.base_directory)
    _check_converter(spec)
    _check_space(spec, base, work)
    steps = _Steps(spec, reporter)
    weights = _merged(spec, base, work, reporter, steps)
    # Before the long work, since it is cheap: what it refuses fails early.
    alone = _adapter_alone(spec, work, reporter, steps)
    float_file = work / "float.gguf"
    steps.begin("convert", "converting to GGUF")
    _convert(spec, weights, float_file, reporter)
    if weights != base:
        shutil.rmtree(weights)
    tokenizer = AutoTokenizer.from_pretrained(base, local_files_only=True)
    files = tuple(
        _quantized(spec, quantization, float_file, directory, tokenizer, steps)
        for quantization in spec.quantizations
    )
    if alone is None:
        return files, None
    path, size_bytes, sha256 = _keep(alone, directory)
    return files, GgufFile(path=path, bytes=size_bytes, sha256=sha256)


def _merged(
    spec: ReleaseSpec, base: Path, work: Path, reporter: batch.Reporter, steps: _Steps
) -> Path:
    """The directory to convert: the base itself if there is nothing to merge."""
    if spec.adapter_directory is None:
        return base
    merged = work / "merged"
    merged.mkdir()
    steps.begin("merge", "merging the adapter into the base model")
    pairs = merge.merge(base, Path(spec.adapter_directory), merged)
    reporter.report("merged", f"merged {pairs} LoRA pairs", data={"lora_pairs": pairs})
    return merged


def _convert(spec: ReleaseSpec, weights: Path, destination: Path, reporter: batch.Reporter) -> None:
    _run_converter(
        Path(spec.converter_directory, CONVERTER),
        [
            str(weights),
            f"--outfile={destination}",
            f"--outtype={_float_type(weights)}",
            # One argument, so that a name beginning with a dash is no option.
            f"--model-name={spec.model_name}",
        ],
        reporter,
    )


def _adapter_alone(
    spec: ReleaseSpec, work: Path, reporter: batch.Reporter, steps: _Steps
) -> Path | None:
    """The adapter as llama.cpp attaches it to a loaded base."""
    if spec.adapter_directory is None:
        return None
    steps.begin("adapter", "converting the adapter alone")
    unchecked = work / ADAPTER_FILE
    _run_converter(
        Path(spec.converter_directory, ADAPTER_CONVERTER),
        # Of the base it reads the configuration only.
        [
            spec.adapter_directory,
            f"--base={spec.base_directory}",
            f"--outfile={unchecked}",
            "--outtype=f16",
        ],
        reporter,
    )
    return unchecked


def _run_converter(script: Path, arguments: Sequence[str], reporter: batch.Reporter) -> None:
    argv = process.python_child("appliance.release.convert", str(script), *arguments)
    lines = [""]

    def on_line(line: str) -> None:
        reporter.alive()
        sys.stderr.write(line + "\n")
        lines[0] = line or lines[0]

    status = process.run_in_group(argv, on_line=on_line)
    if status != 0:
        raise ChildFailed(
            "conversion_failed",
            f"llama.cpp's converter should end with status 0; it ended with {status}: {lines[0]}",
            next_step="see whether llama.cpp knows the model's architecture",
        )


def _quantized(
    spec: ReleaseSpec,
    quantization: Quantization,
    float_file: Path,
    directory: Path,
    tokenizer: Any,
    steps: _Steps,
) -> ReleaseFile:
    name = f"model-{quantization}.gguf"
    unchecked = float_file.with_name(name)
    steps.begin(f"quantize:{quantization}", f"quantizing to {quantization}")
    llamacpp.quantize(float_file, unchecked, quantization, threads=spec.threads)
    steps.begin(f"check:{quantization}", f"checking {name} against the base model")
    checks.check(
        unchecked,
        tokenizer,
        end_of_turn_token_id=spec.end_of_turn_token_id,
        threads=spec.threads,
    )
    path, size_bytes, sha256 = _keep(unchecked, directory)
    return ReleaseFile(quantization=quantization, path=path, bytes=size_bytes, sha256=sha256)


def _keep(unchecked: Path, directory: Path) -> tuple[str, int, str]:
    """Give a finished file its final place, durably; its path, bytes and SHA-256."""
    final = directory / unchecked.name
    durable.fsync_path(unchecked)
    unchecked.replace(final)
    durable.fsync_path(directory)
    return str(final), final.stat().st_size, durable.sha256_of(final)


def _check_converter(spec: ReleaseSpec) -> None:
    scripts = [CONVERTER] if spec.adapter_directory is None else [CONVERTER, ADAPTER_CONVERTER]
    for name in scripts:
        script = Path(spec.converter_directory, name)
        if not script.is_file():
            raise ConfigurationError(
                "no_converter",
                f"{script} should be llama.cpp's converter; there is no such file",
                next_step="run the installer again, or set converter_dir",
            )


def _check_space(spec: ReleaseSpec, base: Path, work: Path) -> None:
    needed = bytes_needed(base, spec.quantizations, merging=spec.adapter_directory is not None)
    available = shutil.disk_usage(work).free
    if needed > available:
        raise durable.out_of_disk(
            f"a release needs {needed / 2**30:.1f} GiB of free space; "
            f"there are {available / 2**30:.1f} GiB",
        )


def bytes_needed(base: Path, quantizations: Sequence[Quantization], *, merging: bool) -> int:
    """Most bytes on disk at once: merged weights beside the float GGUF, then that beside the results."""
    elements = sum(_elements_by_dtype(base).values())
    merged = elements * 4 if merging else 0
    float_file = elements * (4 if merging or _float_type(base) == "f32" else 2)
    results = sum(elements * BITS_PER_WEIGHT[quantization] / 8 for quantization in quantizations)
    vocabularies = METADATA_BYTES * (1 + len(quantizations))
    return float_file + max(merged, int(results)) + vocabularies


def _float_type(weights: Path) -> str:
    """The converter's name of the type that holds these weights without loss."""
    dtypes = set(_elements_by_dtype(weights))
    return {frozenset({"F16"}): "f16", frozenset({"BF16"}): "bf16"}.get(frozenset(dtypes), "f32")


def _elements_by_dtype(directory: Path) -> Counter[str]:
    elements: Counter[str] = Counter()
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                elements[tensor.get_dtype()] += int(torch.Size(tensor.get_shape()).numel())
    return elements
