from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance.basemodels import safetensors_header


def write(path: Path, header: Any, data: bytes = bytes(16), length: int | None = None) -> Path:
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded) if length is None else length) + encoded + data)
    return path


def entry(begin: int, end: int, shape: Any, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_counts_elements(tmp_path: Path) -> None:
    header = {
        "__metadata__": {"format": "pt"},
        "a": entry(0, 8, [2]),
        "b": entry(8, 16, [2, 2], "BF16"),
    }
    assert safetensors_header.read(write(tmp_path / "m", header)) == {"a": 2, "b": 4}


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ({"a": entry(0, 8, [2])}, "should hold 8 bytes of data; it holds 16"),
        ({"a": entry(0, 32, [8])}, "should hold 32 bytes of data; it holds 16"),
        ({"a": entry(0, 16, [2])}, "should take 8 bytes; it has 16"),
        ({"a": entry(0, 8, [2]), "b": entry(4, 16, [3])}, "hole or an overlap"),
        ({"a": entry(4, 16, [3])}, "hole or an overlap"),
        ({"a": entry(0, 16, [-2, -2])}, "no sizes"),
        ({"a": entry(0, 16, [4.0])}, "no sizes"),
        ({"a": entry(0, 16, [4], "F7")}, "unknown way"),
        ({"a": entry(0, 16, None)}, "unknown way"),
        ({"a": entry(0, 16, 4)}, "unknown way"),
        ({"a": [1, 2]}, "unknown way"),
        ({"a": {"dtype": "F32"}}, "unknown way"),
        ([], "JSON object"),
    ],
)
def test_refuses_what_does_not_fit_the_file(tmp_path: Path, header: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        safetensors_header.read(write(tmp_path / "m", header))


def test_refuses_a_header_longer_than_the_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="announces a header"):
        safetensors_header.read(write(tmp_path / "m", {}, length=1 << 40))


def test_refuses_an_empty_file(tmp_path: Path) -> None:
    (tmp_path / "m").touch()
    with pytest.raises(ValueError, match="too few"):
        safetensors_header.read(tmp_path / "m")
