"""Base and adapter in, finished GGUF files out: tensor by tensor, with no file between.

The types come from llama.cpp's own rules for each file type, metadata and vocabulary from the base's own
GGUF, the tensors from llama.cpp's own converter; what is added here is B·A, and the order of it all. All file
types are written in one pass over the base. Memory does not grow with the number of layers.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np

from appliance import gguf_header
from appliance.errors import ChildFailed
from appliance.gguf_header import GgufHeader
from appliance.records import Quantization
from appliance.release import converter, ggml, llamacpp
from appliance.release.adapter import LoraPair
from appliance.release.gguf_writer import GgufWriter, Layout, string_pair, uint32_pair

# What one thread quantizes at a time, in values: its float32 fit into a CPU's cache.
_BLOCK_VALUES = 1 << 18


class Sources(NamedTuple):
    """What a release's tensors are made of."""

    base: Path
    pairs: Mapping[str, LoraPair]
    converter_directory: Path


def layouts(
    base_file: Path, quantizations: Sequence[Quantization], model_name: str
) -> dict[Quantization, Layout]:
    """Of the GGUFs that a model trained on this base has under `model_name`; `base_file` is one of the base,
    in any type."""
    header = gguf_header.read(base_file)
    return {
        quantization: Layout(
            _pairs(header, quantization, model_name), _tensors(base_file, header, quantization)
        )
        for quantization in quantizations
    }


def _tensors(
    base_file: Path, header: GgufHeader, quantization: Quantization
) -> dict[str, tuple[tuple[int, ...], int, int]]:
    types = llamacpp.tensor_types(base_file, quantization)
    if types.keys() != header.tensors.keys():
        raise ChildFailed(
            "quantization_failed",
            f"llama.cpp should choose a type for each of {len(header.tensors)} tensors of "
            f"{base_file.name}; it did for {len(types)}",
            next_step="check that llama-cpp-python is of the version that is pinned",
        )
    numbers = ggml.types_by_name()
    tensors = {}
    for name, tensor in header.tensors.items():
        kind = numbers[types[name]]
        columns, rows = tensor.shape[0], math.prod(tensor.shape[1:])
        tensors[name] = (tensor.shape, kind, ggml.row_bytes(kind, columns) * rows)
    return tensors


def _pairs(header: GgufHeader, quantization: Quantization, model_name: str) -> dict[str, bytes]:
    """The base's metadata, but for its name and type, and with a word on where the model comes from."""
    file_type = llamacpp.FILE_TYPES[quantization]
    base_name = str(header.metadata.get("general.name", ""))
    return {
        **header.pairs,
        "general.name": string_pair("general.name", model_name),
        "general.file_type": uint32_pair("general.file_type", file_type),
        "general.base_model.count": uint32_pair("general.base_model.count", 1),
        "general.base_model.0.name": string_pair("general.base_model.0.name", base_name),
    }


class Destination(NamedTuple):
    """A GGUF to write; `importance` by the names of its tensors, for those of which it is known."""

    layout: Layout
    importance: Mapping[str, np.ndarray] = {}


def write(
    sources: Sources,
    destinations: Mapping[Path, Destination],
    *,
    threads: int,
    on_tensor: Callable[[str], None],
) -> None:
    """Write each of `destinations`; `on_tensor` is called with the name of each tensor that is done."""
    with contextlib.ExitStack() as stack:
        writers = [
            (stack.enter_context(GgufWriter(path, each.layout)), each.importance)
            for path, each in destinations.items()
        ]
        # Left first, also after an error: nothing is written any more when the files are closed.
        pool = stack.enter_context(ThreadPoolExecutor(threads))

        def take(name: str, values: np.ndarray) -> None:
            for writer, importance in writers:
                _quantize(writer, name, values, importance.get(name), pool)
            on_tensor(name)

        converter.stream(sources.converter_directory, sources.base, sources.pairs, take)


def _quantize(
    writer: GgufWriter,
    name: str,
    values: np.ndarray,
    importance: np.ndarray | None,
    pool: ThreadPoolExecutor,
) -> None:
    tensor = writer.layout.tensors.get(name)
    if tensor is None or _significant(tensor.shape) != _significant(values.shape[::-1]):
        raise ChildFailed(
            "release_check_failed",
            f"{name} of shape {[*values.shape[::-1]]} should be a tensor of the base's GGUF; "
            f"there it is {None if tensor is None else [*tensor.shape]}",
            next_step="import the base model again",
        )
    kind = tensor.ggml_type
    rows = np.ascontiguousarray(values, dtype=np.float32).reshape(-1, values.shape[-1])
    row_bytes = ggml.row_bytes(kind, rows.shape[1])
    block = max(1, _BLOCK_VALUES // rows.shape[1])

    def work(begin: int) -> None:
        data = ggml.quantize_rows(rows[begin : begin + block], kind, importance)
        writer.write(name, data, begin * row_bytes)

    # All of them, so that an error in any is raised here.
    for _ in pool.map(work, range(0, len(rows), block)):
        pass


def _significant(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Without the ones at its end, which llama.cpp's quantizer leaves away."""
    while shape[-1:] == (1,):
        shape = shape[:-1]
    return shape
