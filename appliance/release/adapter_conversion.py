"""The adapter alone as a GGUF, which the engine attaches to the loaded base.

llama.cpp knows one scale for a whole adapter, its alpha divided by each pair's own rank (llama_adapter_lora):
what training scaled otherwise is written into the matrices first.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file

from appliance.release import adapter, converter
from appliance.release.adapter import LoraPair

# Beside its weights, what the file holds, at most.
_METADATA_BYTES = 1 << 20


def bytes_needed(directory: Path) -> int:
    """Most bytes on disk that `convert` takes: the file, and a copy of the adapter with other scales."""
    return 2 * (directory / adapter.WEIGHTS).stat().st_size + _METADATA_BYTES


def convert(
    directory: Path,
    pairs: Mapping[str, LoraPair],
    base: Path,
    destination: Path,
    converter_directory: Path,
) -> None:
    """Write `directory`, whose content is `pairs`, as `destination` in 16 bits.

    Raises ChildFailed (`conversion_failed`) if llama.cpp's converter does not take it.
    """
    alpha = json.loads((directory / adapter.CONFIG).read_bytes())["lora_alpha"]
    rescaled = destination.with_suffix(".rescaled")
    source = directory
    if any(pair.scaling != alpha / pair.rank for pair in pairs.values()):
        source = rescaled
        _write_rescaled(directory, pairs, alpha, rescaled)
    converter.run(
        converter_directory / converter.ADAPTER_SCRIPT,
        # Of the base it reads the configuration only.
        [str(source), f"--base={base}", f"--outfile={destination}", "--outtype=f16"],
    )
    shutil.rmtree(rescaled, ignore_errors=True)


def _write_rescaled(
    directory: Path, pairs: Mapping[str, LoraPair], alpha: float, destination: Path
) -> None:
    destination.mkdir()
    shutil.copyfile(directory / adapter.CONFIG, destination / adapter.CONFIG)
    tensors = {}
    for name, pair in pairs.items():
        module = f"base_model.model.{name.removesuffix('.weight')}"
        tensors[f"{module}.lora_A.weight"] = pair.a
        tensors[f"{module}.lora_B.weight"] = pair.b.float() * (pair.scaling * pair.rank / alpha)
    save_file(tensors, destination / adapter.WEIGHTS)
