"""The few functions of ggml's library that quantize rows: the very code that llama.cpp's own quantizer runs.

Signatures: ggml/include/ggml.h of the llama.cpp in the installed llama-cpp-python.
"""

from __future__ import annotations

import ctypes
from pathlib import Path

import llama_cpp
import numpy as np

from appliance.errors import ChildFailed

_LIBRARY = Path(llama_cpp.__file__).parent / "lib" / "libggml-base.so"
_ggml = ctypes.CDLL(str(_LIBRARY))
_ggml.ggml_type_name.argtypes = [ctypes.c_int]
_ggml.ggml_type_name.restype = ctypes.c_char_p
_ggml.ggml_blck_size.argtypes = [ctypes.c_int]
_ggml.ggml_blck_size.restype = ctypes.c_int64
_ggml.ggml_row_size.argtypes = [ctypes.c_int, ctypes.c_int64]
_ggml.ggml_row_size.restype = ctypes.c_size_t
_ggml.ggml_quantize_chunk.argtypes = [
    ctypes.c_int,
    ctypes.c_void_p,  # float values
    ctypes.c_void_p,  # where to write
    ctypes.c_int64,  # the first value
    ctypes.c_int64,  # rows
    ctypes.c_int64,  # values in a row
    ctypes.c_void_p,  # importance of each column, or none
]
_ggml.ggml_quantize_chunk.restype = ctypes.c_size_t
_ggml.ggml_validate_row_data.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
_ggml.ggml_validate_row_data.restype = ctypes.c_bool


def type_name(kind: int) -> str:
    """The library's own name of a type."""
    return str(_ggml.ggml_type_name(kind).decode())


def types_by_name() -> dict[str, int]:
    """The numbers of enum ggml_type by the library's own names of them, such as "q4_K"."""
    return {type_name(number): number for number in range(llama_cpp.GGML_TYPE_COUNT)}


def block_values(kind: int) -> int:
    """Values in a block of this type; 0 for one that is no more."""
    return int(_ggml.ggml_blck_size(kind))


def row_bytes(kind: int, columns: int) -> int:
    """Bytes of a row of `columns` values; raises ChildFailed if it is no whole number of blocks."""
    block = block_values(kind)
    if columns % block:
        raise ChildFailed(
            "quantization_failed",
            f"a row of {type_name(kind)} should be a multiple of {block} values; it has {columns}",
        )
    return int(_ggml.ggml_row_size(kind, columns))


def quantize_rows(
    values: np.ndarray, kind: int, importance: np.ndarray | None = None
) -> memoryview:
    """The rows of `values` [rows, columns], contiguous float32, as blocks of `kind`.

    `importance` [columns], contiguous float32, says which columns should come nearest to what they were.
    Safe to call from several threads, each with rows of its own. Raises ChildFailed for a result that
    llama.cpp would not load, such as one of values that are not finite.
    """
    rows, columns = values.shape
    result = ctypes.create_string_buffer(rows * row_bytes(kind, columns))
    if importance is not None and importance.shape != (columns,):
        raise ChildFailed(
            "quantization_failed",
            f"the importance of {columns} columns should be as many numbers; it is {importance.shape}",
        )
    matters = None if importance is None else importance.ctypes.data
    written = _ggml.ggml_quantize_chunk(kind, values.ctypes.data, result, 0, rows, columns, matters)
    if written != len(result) or not _ggml.ggml_validate_row_data(kind, result, written):
        raise ChildFailed(
            "quantization_failed",
            f"quantized to {type_name(kind)}, weights should be finite numbers; some are not",
            next_step="check that the base model's weights are whole, and whether the training diverged",
        )
    return memoryview(result)
