"""A base model as GGUF, in llama.cpp's own two steps: converted in full precision, then quantized.

Done once, when a base comes in: its metadata, vocabulary and tensors' names serve every release made of it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open

from appliance.records import Quantization
from appliance.release import converter

# Upper bounds of what a weight takes in a file, small models' fallback types included.
BITS_PER_WEIGHT = {
    Quantization.Q2_K: 6.0,
    Quantization.Q4_K_M: 7.5,
    Quantization.Q5_K_M: 8.0,
    Quantization.Q6_K: 9.0,
    Quantization.Q8_0: 9.0,
    Quantization.F16: 16.5,
    Quantization.BF16: 16.5,
}
# What a GGUF holds beside weights: the vocabulary, mostly.
METADATA_BYTES = 32 << 20


def convert(base: Path, destination: Path, model_name: str, converter_directory: Path) -> None:
    """Write `base` as one GGUF that holds its weights without loss; raises ChildFailed."""
    converter.run(
        converter_directory / converter.MODEL_SCRIPT,
        [
            str(base),
            f"--outfile={destination}",
            f"--outtype={_float_type(base)}",
            # One argument, so that a name beginning with a dash is no option.
            f"--model-name={model_name}",
        ],
    )


def bytes_needed(base: Path, quantizations: Sequence[Quantization]) -> int:
    """Most bytes on disk at once: the GGUF in full precision beside the results."""
    elements = sum(_elements_by_dtype(base).values())
    bits = 32 if _float_type(base) == "f32" else 16
    results = sum(BITS_PER_WEIGHT[quantization] for quantization in quantizations)
    return int(elements * (bits + results) / 8) + METADATA_BYTES * (1 + len(quantizations))


def _float_type(base: Path) -> str:
    """The converter's name of the type that holds these weights without loss."""
    dtypes = set(_elements_by_dtype(base))
    return {frozenset({"F16"}): "f16", frozenset({"BF16"}): "bf16"}.get(frozenset(dtypes), "f32")


def _elements_by_dtype(directory: Path) -> Counter[str]:
    elements: Counter[str] = Counter()
    for shard in sorted(directory.glob("*.safetensors")):
        with safe_open(shard, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118
                tensor = file.get_slice(name)
                elements[tensor.get_dtype()] += int(torch.Size(tensor.get_shape()).numel())
    return elements
