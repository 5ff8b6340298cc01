from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import pytest

from appliance import gguf_header
from appliance.errors import InvalidInput
from appliance.ggml_types import BLOCKS
from appliance.gguf_header import TensorInfo
from tests.children import required_path


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(
    name: str = "w",
    shape: tuple[int, ...] = (8, 2),
    offset: int = 0,
    *,
    kind: int = 0,
    dimensions: int | None = None,
) -> bytes:
    count = len(shape) if dimensions is None else dimensions
    sizes = struct.pack(f"<I{len(shape)}Q", count, *shape)
    return string(name) + sizes + struct.pack("<IQ", kind, offset)


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


# Those of llama.cpp's own collection of bad files (tests/test-gguf.cpp), and what broke its loaders.
HEADERS: list[tuple[dict[str, Any], str]] = [
    ({"magic": b"GGML"}, "begin with"),
    ({"magic": b"FUGG"}, "begin with"),
    ({"version": 0}, "version 2 or 3"),
    ({"version": 1}, "version 2 or 3"),
    ({"version": 4}, "version 2 or 3"),
    # Of the other byte order.
    ({"version": 3 << 24}, "version 2 or 3"),
    ({"counts": (1, 1 << 60)}, "metadata pairs"),
    ({"counts": (1, (1 << 64) - 1)}, "metadata pairs"),
    ({"counts": (1 << 60, 1)}, "tensors"),
    ({"counts": ((1 << 64) - 1, 1)}, "tensors"),
    # One more than there are, so that data is read as a tensor, or a tensor as a pair.
    ({"counts": (2, 1)}, "no plain text: ''"),
    ({"counts": (1, 2)}, "has a name of"),
    ({"tensors": (tensor(shape=(1, 1, 1, 1, 1)),)}, "at most 4 dimensions"),
    ({"tensors": (tensor(dimensions=0xFFFFFFFF),)}, "at most 4 dimensions"),
    ({"tensors": (tensor(shape=(0, 2)),)}, "no empty tensor"),
    # Negative, where numbers are signed.
    ({"tensors": (tensor(shape=((1 << 64) - 8, 2)),)}, "bytes of tensors"),
    ({"tensors": (tensor(shape=(1 << 40, 1 << 40)),)}, "bytes of tensors"),
    # Whose product is 0, or small, in 64 bits.
    ({"tensors": (tensor(shape=(1 << 32, 1 << 32)),)}, "bytes of tensors"),
    ({"tensors": (tensor(shape=(1 << 32, (1 << 32) + 1)),)}, "bytes of tensors"),
    # Whose number of bytes is.
    ({"tensors": (tensor(shape=(1 << 62,)),)}, "bytes of tensors"),
    ({"tensors": (tensor(kind=4),)}, "known types; 'w' is of type 4"),
    ({"tensors": (tensor(kind=43),)}, "known types"),
    ({"tensors": (tensor(kind=0xFFFFFFFF),)}, "known types"),
    ({"tensors": (tensor(shape=(48,), kind=2),)}, "whole blocks of 32"),
    ({"tensors": (tensor(shape=(), kind=8),)}, "whole blocks of 32"),
    ({"tensors": (tensor(offset=7),)}, "at 0, behind the one before; it is at 7"),
    ({"tensors": (tensor(offset=32),)}, "at 0, behind"),
    ({"tensors": (tensor(offset=(1 << 64) - 32),)}, "at 0, behind"),
    ({"tensors": (tensor(), tensor("v"))}, "at 64, behind"),
    ({"tensors": (tensor(), tensor("v", offset=96))}, "at 64, behind"),
    ({"tensors": (tensor(), tensor(offset=64))}, "once"),
    ({"tensors": (tensor(name="n" * 64),)}, "name of 64 bytes; 63"),
    ({"tensors": (tensor(name=""),)}, "no plain text: ''"),
    ({"tensors": (tensor(name="w\x00"),)}, "no plain text"),
    ({"tensors": (tensor(name="w\nERROR all is lost"),)}, "no plain text"),
    ({"data": 0}, "64 bytes of tensors; it has 0 left"),
    ({"data": 63}, "bytes of tensors"),
]


@pytest.mark.parametrize(("fault", "words"), HEADERS)
def test_refuses_a_header_that_cannot_be(tmp_path: Path, fault: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidInput, match=words):
        gguf_header.read(write(tmp_path / "a.gguf", NAME, **fault))


PAIRS: list[tuple[bytes, str]] = [
    (pair("k", 8, struct.pack("<Q", 1 << 62)), "a string"),
    (pair("k", 8, struct.pack("<Q", (1 << 64) - 1)), "a string"),
    (pair("k", 9, struct.pack("<IQ", 0, 1 << 62)), "array of"),
    (pair("k", 9, struct.pack("<IQ", 8, 1 << 20)), "strings of an array"),
    (pair("k", 9, struct.pack("<IQ", 4, 1 << 20)), "an array"),
    # Arrays of arrays, which nest without end.
    (pair("k", 9, struct.pack("<IQ", 9, 1)), "plain values"),
    (pair("k", 9, struct.pack("<IQ", 13, 1)), "plain values"),
    (pair("k", 13, b""), "known types"),
    (pair("k", 0xFFFFFFFF, b""), "known types"),
    (pair("", 8, string("v")), "no plain text"),
    (pair("k" * 1025, 8, string("v")), "name of 1025 bytes"),
    (pair("k\x1b[2J", 8, string("v")), "no plain text"),
    (struct.pack("<Q", (1 << 64) - 1), "name of 18446744073709551615 bytes"),
    (NAME, "twice"),
    (pair("general.alignment", 4, struct.pack("<I", 0)), "power of two"),
    (pair("general.alignment", 4, struct.pack("<I", 48)), "power of two"),
    (pair("general.alignment", 4, struct.pack("<I", 4)), "power of two"),
    (pair("general.alignment", 4, struct.pack("<I", 0x80000000)), "power of two"),
    (pair("general.alignment", 5, struct.pack("<i", -32)), "power of two"),
    (pair("general.alignment", 7, b"\x01"), "power of two"),
    (pair("general.alignment", 8, string("32")), "power of two"),
    # As it is, the second tensor would lie elsewhere.
    (pair("general.alignment", 4, struct.pack("<I", 128)), "at 128, behind"),
]


@pytest.mark.parametrize(("value", "words"), PAIRS)
def test_refuses_a_value_that_cannot_be(tmp_path: Path, value: bytes, words: str) -> None:
    two = (tensor(), tensor("v", offset=64))
    with pytest.raises(InvalidInput, match=words):
        gguf_header.read(write(tmp_path / "a.gguf", NAME, value, tensors=two))


def test_all_kinds_of_faults_are_among_the_cases() -> None:
    assert len(HEADERS) + len(PAIRS) == 59


def test_a_custom_alignment_places_the_tensors(tmp_path: Path) -> None:
    aligned = pair("general.alignment", 4, struct.pack("<I", 128))
    two = (tensor(), tensor("v", offset=128))
    header = gguf_header.read(write(tmp_path / "a.gguf", aligned, tensors=two, data=320))
    assert header.data_offset % 128 == 0
    assert header.tensors["v"].offset == 128


@pytest.mark.llama
def test_blocks_are_those_of_the_library() -> None:
    import llama_cpp

    from appliance.release import ggml

    known = {
        number: (ggml.block_values(number), ggml.row_bytes(number, ggml.block_values(number)))
        for number in range(llama_cpp.GGML_TYPE_COUNT)
        if ggml.block_values(number)
    }
    # What is computed with, and never kept.
    assert {ggml.type_name(known_only) for known_only in known.keys() - BLOCKS.keys()} == {
        "q8_1",
        "q8_K",
    }
    assert {number: known[number] for number in BLOCKS} == BLOCKS
    assert len(BLOCKS) == 33


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
