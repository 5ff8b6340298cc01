"""Write a GGUF whose metadata, tensors and types are known from the start; its rows come in any order.

Format: ggml/docs/gguf.md, version 3, little-endian. The whole file is reserved on disk before anything is
written. Does not know what the numbers mean; `appliance.gguf_header` reads such a file.
"""

from __future__ import annotations

import os
import struct
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Self

from appliance.errors import ChildFailed
from appliance.gguf_header import DEFAULT_ALIGNMENT, MAGIC, TensorInfo

_VERSION = 3
_UINT32, _STRING = 4, 8  # enum gguf_metadata_value_type


def string_pair(key: str, value: str) -> bytes:
    """A pair of metadata as the file holds it."""
    return _string(key) + struct.pack("<I", _STRING) + _string(value)


def uint32_pair(key: str, value: int) -> bytes:
    """A pair of metadata as the file holds it."""
    return _string(key) + struct.pack("<II", _UINT32, value)


def _aligned(size: int) -> int:
    """`size` with the padding that follows it in the file."""
    return -(-size // DEFAULT_ALIGNMENT) * DEFAULT_ALIGNMENT


class Layout:
    """Where everything lies in a file with these pairs, and tensors of (shape, ggml type, bytes)."""

    def __init__(
        self, pairs: Mapping[str, bytes], tensors: Mapping[str, tuple[tuple[int, ...], int, int]]
    ) -> None:
        self._pairs = pairs
        self.tensors: dict[str, TensorInfo] = {}
        self.tensor_bytes: dict[str, int] = {}
        offset = 0
        for name, (shape, kind, size) in tensors.items():
            self.tensors[name] = TensorInfo(shape=shape, ggml_type=kind, offset=offset)
            self.tensor_bytes[name] = size
            offset += _aligned(size)
        self.header = self._header()
        self.file_bytes = len(self.header) + offset

    def _header(self) -> bytes:
        parts = [MAGIC, struct.pack("<IQQ", _VERSION, len(self.tensors), len(self._pairs))]
        parts += self._pairs.values()
        for name, tensor in self.tensors.items():
            dimensions = len(tensor.shape)
            parts.append(_string(name))
            parts.append(
                struct.pack(
                    f"<I{dimensions}QIQ",
                    dimensions,
                    *tensor.shape,
                    tensor.ggml_type,
                    tensor.offset,
                )
            )
        content = b"".join(parts)
        return content.ljust(_aligned(len(content)), b"\0")


class GgufWriter:
    """The new file `path` in `layout`; use it as a context manager.

    Raises OSError where there is no room for it, and on leaving ChildFailed unless all tensors are there.
    """

    def __init__(self, path: Path, layout: Layout) -> None:
        self._path = path
        self.layout = layout
        self._lock = threading.Lock()
        self._missing = dict(layout.tensor_bytes)

    def __enter__(self) -> Self:
        self._fd = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
        try:
            os.posix_fallocate(self._fd, 0, self.layout.file_bytes)
            self._write(memoryview(self.layout.header), 0)
        except BaseException:
            os.close(self._fd)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            if kind is None:
                self._check()
                os.fsync(self._fd)
        finally:
            os.close(self._fd)

    def write(self, name: str, data: memoryview, begin: int) -> None:
        """Write a part of tensor `name`, `begin` bytes behind its start; each byte is to be written once.

        Safe to call from several threads.
        """
        start = len(self.layout.header) + self.layout.tensors[name].offset
        self._write(data, start + begin)
        with self._lock:
            self._missing[name] -= data.nbytes

    def _write(self, data: memoryview, offset: int) -> None:
        while data:
            count = os.pwrite(self._fd, data, offset)
            data, offset = data[count:], offset + count

    def _check(self) -> None:
        if incomplete := sorted(name for name, count in self._missing.items() if count):
            raise ChildFailed(
                "release_check_failed",
                f"every tensor of {self._path.name} should be written in full; "
                f"{len(incomplete)} are not, such as {incomplete[:3]}",
                next_step="report this with the base model's name",
            )


def _string(text: str) -> bytes:
    data = text.encode()
    return struct.pack("<Q", len(data)) + data
