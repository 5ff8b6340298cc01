"""Check the header of a safetensors file against the file's size, before any library maps it.

Format: 8 bytes of header length, JSON, then the tensors' bytes, back to back without holes. Reads no data.
"""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100 * 1000 * 1000  # the format's own limit
ITEM_BYTES = {
    **dict.fromkeys(("F64", "I64", "U64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("I8", "U8", "BOOL", "F8_E4M3", "F8_E5M2"), 1),
}


def read(path: Path) -> dict[str, int]:
    """Number of elements of each tensor; raises ValueError saying what does not fit."""
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise ValueError(f"has {size} bytes, too few for a header")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(size - 8, MAX_HEADER_BYTES):
            raise ValueError(f"announces a header of {length} bytes in a file of {size}")
        header = json.loads(file.read(length))
    if not isinstance(header, dict):
        raise ValueError("should hold a JSON object as its header")
    header.pop("__metadata__", None)
    tensors = {name: _extent(name, entry) for name, entry in header.items()}
    _check_cover(sorted((begin, end) for begin, end, _ in tensors.values()), size - 8 - length)
    return {name: elements for name, (_, _, elements) in tensors.items()}


def _extent(name: str, entry: Any) -> tuple[int, int, int]:
    try:
        begin, end = entry["data_offsets"]
        item_bytes = ITEM_BYTES[entry["dtype"]]
        sizes = (begin, end, *entry["shape"])
    except (KeyError, TypeError, ValueError) as exc:
        raise ValueError(f"describes tensor {name!r} in an unknown way") from exc
    if not all(type(number) is int and number >= 0 for number in sizes):
        raise ValueError(f"describes tensor {name!r} by numbers that are no sizes")
    elements = math.prod(sizes[2:])
    if end - begin != elements * item_bytes:
        raise ValueError(
            f"tensor {name!r} should take {elements * item_bytes} bytes; it has {end - begin}"
        )
    return begin, end, elements


def _check_cover(extents: list[tuple[int, int]], data_bytes: int) -> None:
    position = 0
    for begin, end in extents:
        if begin != position:
            raise ValueError(f"has a hole or an overlap at byte {position} of its data")
        position = end
    if position != data_bytes:
        raise ValueError(f"should hold {position} bytes of data; it holds {data_bytes}")
