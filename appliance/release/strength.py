"""How much of the adapter is in a finished file, told from its weights.

What is read back from the file, less the base's weights, is what was added and the noise of quantizing. Part
of that noise goes along with the base (coarse types make everything a little smaller); the rest knows nothing
of either. So regressed on both, over a million weights, it tells the scale that was merged, however coarse
the type and however little was trained.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from appliance import gguf_header
from appliance.records import Strength
from appliance.release import converter, ggml
from appliance.release.adapter import LoraPair

# How much of the adapter a release may have, give or take so many standard errors; beyond the largest error
# nothing can be told. Measured with all of it, half of it, twice it: 0.92, 0.47, 1.83 in Q2_K, 0.98, 0.49,
# 1.95 in Q4_K_M, 1.00, 0.50, 2.00 in F16.
_LEAST, _MOST = 0.8, 1.2
_ERRORS = 4.0
_LARGEST_ERROR = 0.1
# Of each tensor the first rows: enough to tell, and no more memory for a large model.
_MOST_VALUES = 1 << 20


class Reference(NamedTuple):
    """The first rows of a tensor as the GGUF has them: the base's, and what training adds [rows, columns]."""

    tensor: str
    base: np.ndarray
    added: np.ndarray


class _Alone(LoraPair):
    """A pair that puts what it adds in the weight's place, by other operations than the merge."""

    def add_to(self, weight: torch.Tensor) -> torch.Tensor:
        return self.b.float() @ (self.a.float() * self.scaling)


def references(directory: Path, base: Path, pairs: Mapping[str, LoraPair]) -> list[Reference]:
    """Of each kind of layer the weight that was moved most, where it is one tensor of the GGUF."""
    names = converter.tensor_names(directory, base, _most_moved(pairs))
    wanted = {names[weight]: weight for weight in names}
    alone = {weight: _Alone(*pairs[weight]) for weight in names}
    added: dict[str, np.ndarray] = {}
    bases: dict[str, np.ndarray] = {}
    for found, changes in ((added, alone), (bases, {})):

        def take(name: str, values: np.ndarray, found: dict[str, np.ndarray] = found) -> None:
            found[name] = _first_rows(values)

        converter.stream(directory, base, changes, take, only=wanted)
    return [Reference(name, bases[name], added[name]) for name in wanted]


def measure(path: Path, known: Sequence[Reference]) -> Strength | None:
    """Of the file at `path`; None where nothing is known to compare with."""
    header = gguf_header.read(path)
    product = square = variance = 0.0
    for reference in known:
        tensor = header.tensors[reference.tensor]
        found = _read(
            path, header.data_offset + tensor.offset, tensor.ggml_type, reference.base.shape
        )
        base, added = reference.base.astype(np.float64), reference.added.astype(np.float64)
        change = found - base
        own = added - _along(added, base) * base
        its_square = float((own**2).sum())
        product += float((change * own).sum())
        square += its_square
        left = change - _along(change, base) * base - _along(change, own) * own
        variance += float((left**2).mean()) * its_square
    if not square > 0:
        return None
    return Strength(slope=product / square, error=math.sqrt(variance) / square)


def _along(values: np.ndarray, other: np.ndarray) -> float:
    """The slope of `values` over `other`; 0 where there is none."""
    square = float((other**2).sum())
    return float((values * other).sum()) / square if square > 0 else 0.0


def keeps(found: Strength | None) -> bool:
    """Whether as much of the adapter is in a file's weights as was trained, as far as can be told."""
    if found is None or found.error > _LARGEST_ERROR:
        return True
    around = _ERRORS * found.error
    return _LEAST - around <= found.slope <= _MOST + around


def faults(found: Strength | None) -> list[str]:
    """What is wrong, in words."""
    if found is None or keeps(found):
        return []
    return [
        f"{_LEAST} to {_MOST} of what the adapter adds to the weights should be found in it; "
        f"{found.slope:.2f} is, give or take {_ERRORS * found.error:.2f} (this type may suit a base badly "
        "that came as a quantized GGUF: another type may do, and the publisher's safetensors will)"
    ]


def describe(found: Strength | None) -> str:
    """A part of a line for people."""
    if found is None or found.error > _LARGEST_ERROR:
        return "too little to tell how much of the adapter is in it"
    return f"{found.slope:.2f} of the adapter in its weights"


def _most_moved(pairs: Mapping[str, LoraPair]) -> list[str]:
    found: dict[str, str] = {}
    for weight, pair in pairs.items():
        kind = weight.rsplit(".", 2)[-2]
        if kind not in found or pair.norm > pairs[found[kind]].norm:
            found[kind] = weight
    return list(found.values())


def _first_rows(values: np.ndarray) -> np.ndarray:
    rows = values.reshape(-1, values.shape[-1])
    return rows[: max(1, _MOST_VALUES // rows.shape[1])].astype(np.float32)


def _read(path: Path, offset: int, kind: int, shape: tuple[int, int]) -> np.ndarray:
    """The first rows of a tensor, [rows, columns], by the converter's own reader of ggml's types."""
    rows, columns = shape
    quants = importlib.import_module("gguf.quants")
    constants = importlib.import_module("gguf.constants")
    size = rows * ggml.row_bytes(kind, columns)
    blocks = np.fromfile(path, np.uint8, size, offset=offset).reshape(rows, -1)
    values: np.ndarray = quants.dequantize(blocks, constants.GGMLQuantizationType(kind))
    return values.reshape(shape)
