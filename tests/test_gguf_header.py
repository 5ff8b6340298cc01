from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance import gguf_header
from appliance.errors import InvalidInput
from appliance.gguf_header import TensorInfo
from tests.children import required_path


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str = "w", shape: tuple[int, ...] = (8, 2), offset: int = 0) -> bytes:
    dimensions = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + dimensions + struct.pack("<IQ", 0, offset)


NAME = pair("general.name", 8, string("tiny"))
TOKENS = pair("tokens", 9, struct.pack("<IQ", 8, 2) + string("a") + string("b"))
SCORES = pair("scores", 9, struct.pack("<IQ2f", 6, 2, 0.5, 1.5))


def write(
    path: Path,
    *pairs: bytes,
    tensors: tuple[bytes, ...] = (tensor(),),
    magic: bytes = b"GGUF",
    version: int = 3,
    counts: tuple[int, int] | None = None,
    data: int = 256,
) -> Path:
    tensor_count, pair_count = counts or (len(tensors), len(pairs))
    head = magic + struct.pack("<IQQ", version, tensor_count, pair_count)
    path.write_bytes(head + b"".join(pairs) + b"".join(tensors) + bytes(data))
    return path


def test_reads_what_is_there(tmp_path: Path) -> None:
    header = gguf_header.read(write(tmp_path / "a.gguf", NAME, TOKENS, SCORES))
    assert header.version == 3
    assert header.metadata == {
        "general.name": "tiny",
        "tokens": ["a", "b"],
        "scores": [0.5, 1.5],
    }
    assert header.tensors == {"w": TensorInfo(shape=(8, 2), ggml_type=0, offset=0)}
    assert header.tensors["w"].elements == 16
    # Each pair as it stands there, in the file's order.
    assert list(header.pairs) == list(header.metadata)
    assert b"".join(header.pairs.values()) == NAME + TOKENS + SCORES
    # Behind the header, and aligned.
    assert header.data_offset == -(-((tmp_path / "a.gguf").stat().st_size - 256) // 32) * 32


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"magic": b"GGML"}, "begin with"),
        ({"version": 1}, "version 2 or 3"),
        ({"version": 3 << 24}, "version 2 or 3"),
        ({"counts": (1, 1 << 60)}, "metadata pairs"),
        ({"counts": (1 << 60, 1)}, "tensors"),
        ({"tensors": (tensor(shape=(1, 1, 1, 1, 1)),)}, "dimensions"),
        ({"tensors": (tensor(offset=7),)}, "multiple of 32"),
        ({"tensors": (tensor(offset=1 << 40),)}, "within the file"),
        ({"tensors": (tensor(shape=(1 << 40, 1 << 40)),)}, "within the file"),
        ({"tensors": (tensor(), tensor())}, "once"),
        ({"tensors": (tensor(name="n" * 2000),)}, "name of 2000 bytes"),
    ],
)
def test_refuses_a_header_that_cannot_be(tmp_path: Path, fault: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        gguf_header.read(write(tmp_path / "a.gguf", NAME, **fault))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (pair("k", 8, struct.pack("<Q", 1 << 62)), "a string"),
        (pair("k", 9, struct.pack("<IQ", 0, 1 << 62)), "array of"),
        (pair("k", 9, struct.pack("<IQ", 8, 1 << 20)), "strings of an array"),
        (pair("k", 9, struct.pack("<IQ", 4, 1 << 20)), "an array"),
        (pair("k", 9, struct.pack("<IQ", 9, 1)), "plain values"),
        (pair("k", 13, b""), "known types"),
        (NAME, "twice"),
        (pair("general.alignment", 4, struct.pack("<I", 0)), "power of two"),
        (pair("general.alignment", 4, struct.pack("<I", 48)), "power of two"),
        (pair("general.alignment", 8, string("32")), "power of two"),
    ],
)
def test_refuses_a_value_that_cannot_be(tmp_path: Path, value: bytes, words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        gguf_header.read(write(tmp_path / "a.gguf", NAME, value))


def test_refuses_every_truncation(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf", NAME, TOKENS, SCORES, data=0).read_bytes()
    cut = tmp_path / "cut.gguf"
    for length in range(len(whole)):
        cut.write_bytes(whole[:length])
        with pytest.raises(InvalidInput):
            gguf_header.read(cut)


def test_damage_is_read_or_refused_but_never_crashes(tmp_path: Path) -> None:
    whole = write(tmp_path / "a.gguf", NAME, TOKENS, SCORES).read_bytes()
    damaged, chance, refused = tmp_path / "damaged.gguf", random.Random(0), 0
    for _ in range(2000):
        content = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            content[chance.randrange(len(whole) - 256)] = chance.randrange(256)
        damaged.write_bytes(content)
        try:
            gguf_header.read(damaged)
        except InvalidInput:
            refused += 1
    assert refused > 500


@pytest.mark.llama
def test_reads_a_real_file() -> None:
    header = gguf_header.read(required_path("APPLIANCE_TEST_STARTER_GGUF"))
    assert len(header.tensors) == 272
    assert sum(each.elements for each in header.tensors.values()) == 134_515_008
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 49152
    assert header.metadata["tokenizer.chat_template"].startswith("{% for message in messages %}")
