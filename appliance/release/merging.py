"""Base and adapter as one ordinary Hugging Face directory, for other servers than llama.cpp.

The base's files are copied, and of their tensors those that were trained are written again in place: in their
own type, so that everything keeps its position, and one tensor at a time, so that memory does not grow.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open

from appliance import batch, durable
from appliance.child_records import MergeResult, MergeSpec
from appliance.errors import ChildFailed
from appliance.release import adapter
from appliance.release.adapter import LoraPair


def merge(directory: Path, reporter: batch.Reporter) -> MergeResult:
    """Make what `spec.json` in `directory` asks for.

    Raises ChildFailed (`release_check_failed`) unless each LoRA pair found its weight, of its shape, and
    left it finite.
    """
    spec = durable.read_json(directory / batch.SPEC, MergeSpec)
    torch.set_num_threads(spec.threads)
    base, pairs = Path(spec.base_directory), adapter.read(Path(spec.adapter_directory))
    destination = Path(spec.destination)
    shutil.rmtree(destination, ignore_errors=True)
    destination.mkdir()
    left = dict(pairs)
    for path in sorted(base.iterdir()):
        copied = destination / path.name
        shutil.copyfile(path, copied)
        reporter.report(f"copied:{path.name}", f"copied {path.name}")
        if path.suffix == ".safetensors":
            _merge_into(copied, path, left, reporter)
    if left:
        raise _failed(f"{next(iter(left))} should be a weight of the base model; it has none")
    return MergeResult(merged_weights=len(pairs))


def _merge_into(
    copied: Path, original: Path, pairs: dict[str, LoraPair], reporter: batch.Reporter
) -> None:
    """Write the merged weights of one file into its copy; takes them out of `pairs`."""
    begins = _begins(original)
    with safe_open(original, framework="pt") as source, copied.open("r+b") as destination:
        for name in sorted(begins.keys() & pairs.keys()):
            merged = _merged(name, source.get_tensor(name), pairs.pop(name))
            destination.seek(begins[name])
            destination.write(merged.view(torch.uint8).numpy().data)
            reporter.alive()


def _begins(path: Path) -> dict[str, int]:
    """Where each tensor's bytes begin in a file of safetensors."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: 8 + length + entry["data_offsets"][0] for name, entry in header.items()}


def _merged(name: str, weight: torch.Tensor, pair: LoraPair) -> torch.Tensor:
    shape = (pair.b.shape[0], pair.a.shape[1])
    if tuple(weight.shape) != shape:
        raise _failed(f"{name} should be of shape {[*shape]}; it is of {[*weight.shape]}")
    merged = pair.add_to(weight).to(weight.dtype).contiguous()
    if not bool(merged.isfinite().all()):
        raise _failed(f"{name} should hold finite numbers in {weight.dtype}; some are not")
    return merged


def _failed(reason: str) -> ChildFailed:
    return ChildFailed(
        "release_check_failed",
        f"the adapter cannot be merged: {reason}",
        next_step="take the GGUF files, or the adapter alone",
    )
