"""Read the header of a GGUF file, trusting none of it: every count and length is held against the file.

Format: ggml/docs/gguf.md, versions 2 and 3, little-endian. Pure Python, so that a hostile file meets no C
code before this has passed it. What it lets pass has the extents that llama.cpp's own loader asks for
(ggml/src/gguf.cpp), in numbers that cannot overflow here. Does not read tensor data.
"""

from __future__ import annotations

import io
import math
import struct
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from appliance import ggml_types
from appliance.errors import InvalidInput

MAGIC = b"GGUF"
VERSIONS = (2, 3)
MAX_DIMENSIONS = 4
DEFAULT_ALIGNMENT = 32
MAX_ALIGNMENT = 1 << 12
# The largest vocabularies have some 10^5 entries; Python objects cost more than the file's own bytes.
MAX_ARRAY_LENGTH = 1 << 24
MAX_KEY_BYTES = 1 << 10
MAX_TENSOR_NAME_BYTES = 63  # GGML_MAX_NAME, a closing zero less

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
            key = self._name(MAX_KEY_BYTES)
            self._require(key not in metadata, f"should hold {key!r} once; it holds it twice")
            metadata[key] = self._value(self._scalar("I"))
            pairs[key] = self._since(begin)
        alignment = self._alignment(metadata)
        tensors, data_bytes = self._tensors(tensor_count, alignment)
        data_offset = _aligned(self._position(), alignment)
        self._require(
            data_bytes <= max(0, self._size - data_offset),
            f"should hold {data_bytes} bytes of tensors; it has {max(0, self._size - data_offset)} left",
        )
        return GgufHeader(
            version=version,
            metadata=metadata,
            pairs=pairs,
            tensors=tensors,
            data_offset=data_offset,
        )

    def _tensors(self, count: int, alignment: int) -> tuple[dict[str, TensorInfo], int]:
        """And how many bytes they take."""
        tensors: dict[str, TensorInfo] = {}
        end = 0
        for _ in range(count):
            name = self._name(MAX_TENSOR_NAME_BYTES)
            self._require(name not in tensors, f"should hold tensor {name!r} once")
            shape, ggml_type, offset = self._shape(name), self._scalar("I"), self._scalar("Q")
            # Back to back: neither holes, in which anything could hide, nor bytes that belong to two.
            expected = _aligned(end, alignment)
            self._require(
                offset == expected,
                f"should have tensor {name!r} at {expected}, behind the one before; it is at {offset}",
            )
            tensors[name] = TensorInfo(shape=shape, ggml_type=ggml_type, offset=offset)
            end = offset + self._tensor_bytes(name, tensors[name])
        return tensors, end

    def _tensor_bytes(self, name: str, tensor: TensorInfo) -> int:
        self._require(
            tensor.ggml_type in ggml_types.BLOCKS,
            f"should hold tensors of known types; {name!r} is of type {tensor.ggml_type}",
        )
        values, size = ggml_types.BLOCKS[tensor.ggml_type]
        columns = tensor.shape[0] if tensor.shape else 1
        self._require(
            columns % values == 0,
            f"should have rows of whole blocks of {values}; those of {name!r} have {columns} values",
        )
        return tensor.elements // values * size

    def _shape(self, name: str) -> tuple[int, ...]:
        count = self._scalar("I")
        self._require(
            count <= MAX_DIMENSIONS,
            f"should have tensors of at most {MAX_DIMENSIONS} dimensions; {name!r} has {count}",
        )
        shape = tuple(self._scalar("Q") for _ in range(count))
        self._require(0 not in shape, f"should have no empty tensor; {name!r} is of shape {shape}")
        return shape

    def _alignment(self, metadata: dict[str, Any]) -> int:
        value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
        sane = isinstance(value, int) and 8 <= value <= MAX_ALIGNMENT and value & (value - 1) == 0
        self._require(
            sane,
            f"should be aligned by a power of two from 8 to {MAX_ALIGNMENT}; it says {value!r}",
        )
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

    def _name(self, limit: int) -> str:
        length = self._scalar("Q")
        self._require(length <= limit, f"has a name of {length} bytes; {limit} are allowed")
        name = self._bytes(length, "a name").decode("utf-8", "replace")
        # Names are shown to people, and written into logs.
        self._require(name.isprintable() and name, f"has a name that is no plain text: {name!r}")
        return name

    def _string(self) -> str:
        length = self._scalar("Q")
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

    def _require(self, holds: object, message: str) -> None:
        if not holds:
            raise InvalidInput(
                "invalid_gguf",
                f"{self._path.name}: the file {message}",
                next_step="copy the file again and compare its digest with the publisher's",
            )


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
