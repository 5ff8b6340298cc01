"""Read the header of a GGUF file, trusting none of it: every count and length is held against the file.

Format: ggml/docs/gguf.md, versions 2 and 3, little-endian. Pure Python, so that a hostile file meets no C
code before this has passed it. Does not read tensor data, nor know block sizes of quantized types.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from appliance.errors import InvalidInput

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 16
# The largest vocabularies have some 10^5 entries; Python objects cost more than the file's own bytes.
MAX_ARRAY_LENGTH = 1 << 24
MAX_NAME_BYTES = 1 << 10

_SCALARS = dict(enumerate("BbHhIif?")) | {10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
# Least bytes of one entry on disk: an empty key, its type and one byte; a tensor without dimensions.
_MIN_PAIR_BYTES, _MIN_TENSOR_BYTES = 8 + 4 + 1, 8 + 4 + 4 + 8


class TensorInfo(msgspec.Struct, frozen=True, kw_only=True):
    """A tensor's place in the file: `shape` begins with the length of a row, `ggml_type` is ggml.h's number,
    `offset` counts from the file's `data_offset`."""

    shape: tuple[int, ...]
    ggml_type: int
    offset: int

    @property
    def elements(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)


class GgufHeader(msgspec.Struct, frozen=True, kw_only=True):
    """Metadata and tensors by name, in the file's order; `pairs` are the metadata as the file writes them."""

    version: int
    metadata: dict[str, Any]
    pairs: dict[str, bytes]
    tensors: dict[str, TensorInfo]
    data_offset: int


def read(path: Path) -> GgufHeader:
    """Parse the header of `path`; raises InvalidInput at the first thing that cannot be."""
    with path.open("rb") as file:
        return _Reader(file, path).header()


class _Reader:
    def __init__(self, file: BinaryIO, path: Path) -> None:
        self._file = file
        self._path = path
        self._left = self._size = file.seek(0, io.SEEK_END)
        file.seek(0)

    def header(self) -> GgufHeader:
        magic = self._bytes(4, "magic")
        self._require(magic == MAGIC, f"should begin with {MAGIC!r}; it begins with {magic!r}")
        version = self._scalar("I")
        self._require(version in VERSIONS, f"should be of version 2 or 3; it says {version}")
        tensor_count, pair_count = self._scalar("Q"), self._scalar("Q")
        self._fits(pair_count * _MIN_PAIR_BYTES, "metadata pairs")
        self._fits(tensor_count * _MIN_TENSOR_BYTES, "tensors")
        metadata: dict[str, Any] = {}
        pairs: dict[str, bytes] = {}
        for _ in range(pair_count):
            begin = self._position()
            key = self._string(MAX_NAME_BYTES)
            self._require(key not in metadata, f"should hold {key!r} once; it holds it twice")
            metadata[key] = self._value(self._scalar("I"))
            pairs[key] = self._since(begin)
        alignment = self._alignment(metadata)
        tensors = self._tensors(tensor_count, alignment)
        data_offset = math.ceil(self._position() / alignment) * alignment
        self._check_extents(tensors, data_offset)
        return GgufHeader(
            version=version,
            metadata=metadata,
            pairs=pairs,
            tensors=tensors,
            data_offset=data_offset,
        )

    def _tensors(self, count: int, alignment: int) -> dict[str, TensorInfo]:
        tensors: dict[str, TensorInfo] = {}
        for _ in range(count):
            name = self._string(MAX_NAME_BYTES)
            self._require(name not in tensors, f"should hold tensor {name!r} once")
            shape, ggml_type, offset = self._shape(name), self._scalar("I"), self._scalar("Q")
            self._require(
                offset % alignment == 0,
                f"tensor {name!r} should lie at a multiple of {alignment}; it lies at {offset}",
            )
            tensors[name] = TensorInfo(shape=shape, ggml_type=ggml_type, offset=offset)
        return tensors

    def _check_extents(self, tensors: dict[str, TensorInfo], data_offset: int) -> None:
        for name, tensor in tensors.items():
            # No ggml type takes less than one bit for an element.
            self._require(
                data_offset + tensor.offset + tensor.elements // 8 <= self._size,
                f"tensor {name!r} should lie within the file's {self._size} bytes",
            )

    def _shape(self, name: str) -> tuple[int, ...]:
        count = self._scalar("I")
        self._require(
            count <= MAX_DIMENSIONS,
            f"tensor {name!r} should have at most {MAX_DIMENSIONS} dimensions; it has {count}",
        )
        return tuple(self._scalar("Q") for _ in range(count))

    def _alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        sane = isinstance(value, int) and 8 <= value <= MAX_ALIGNMENT and value & (value - 1) == 0
        self._require(sane, f"general.alignment should be a power of two from 8; it is {value!r}")
        return int(value)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            return self._array()
        self._require(kind in _SCALARS, f"should hold values of known types; it holds type {kind}")
        return self._scalar(_SCALARS[kind])

    def _array(self) -> list[Any]:
        kind, count = self._scalar("I"), self._scalar("Q")
        self._require(count <= MAX_ARRAY_LENGTH, f"has an array of {count} entries")
        if kind == _STRING:
            self._fits(count * 8, "strings of an array")
            return [self._string() for _ in range(count)]
        self._require(
            kind in _SCALARS, f"should hold arrays of plain values; one is of type {kind}"
        )
        layout = struct.Struct(f"<{count}{_SCALARS[kind]}")
        return list(layout.unpack(self._bytes(layout.size, "an array")))

    def _string(self, limit: int | None = None) -> str:
        length = self._scalar("Q")
        self._require(
            limit is None or length <= limit, f"has a name of {length} bytes; {limit} are allowed"
        )
        # A vocabulary may hold the bytes of half a character.
        return self._bytes(length, "a string").decode("utf-8", "replace")

    def _scalar(self, code: str) -> Any:
        layout = "<" + code
        return struct.unpack(layout, self._bytes(struct.calcsize(layout), "a value"))[0]

    def _bytes(self, count: int, what: str) -> bytes:
        self._fits(count, what)
        self._left -= count
        return self._file.read(count)

    def _position(self) -> int:
        return self._size - self._left

    def _since(self, begin: int) -> bytes:
        """What was read from `begin` on, as it stands in the file."""
        length = self._position() - begin
        self._file.seek(begin)
        return self._file.read(length)

    def _fits(self, count: int, what: str) -> None:
        self._require(
            count <= self._left, f"should hold {count} bytes of {what}; it has {self._left} left"
        )

    def _require(self, holds: bool, message: str) -> None:
        if not holds:
            raise InvalidInput(
                "invalid_gguf",
                f"{self._path.name}: the file {message}",
                next_step="copy the file again and compare its digest with the publisher's",
            )
