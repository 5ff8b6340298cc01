from __future__ import annotations

import errno
import subprocess
import threading
from pathlib import Path

import pytest

from appliance import gguf_header
from appliance.errors import ChildFailed
from appliance.gguf_header import TensorInfo
from appliance.release.gguf_writer import GgufWriter, Layout, string_pair, uint32_pair

PAIRS = {"general.name": string_pair("general.name", "é"), "n": uint32_pair("n", 7)}
# Shape, type and bytes; neither size is a multiple of the alignment.
TENSORS = {"a.weight": ((3, 2), 0, 24), "b": ((5,), 0, 20)}


def content_of(path: Path, name: str, size: int) -> bytes:
    header = gguf_header.read(path)
    begin = header.data_offset + header.tensors[name].offset
    return path.read_bytes()[begin : begin + size]


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path, layout = tmp_path / "a.gguf", Layout(PAIRS, TENSORS)
    with GgufWriter(path, layout) as writer:
        # In any order, and in parts.
        writer.write("b", memoryview(b"b" * 20), 0)
        writer.write("a.weight", memoryview(b"2" * 12), 12)
        writer.write("a.weight", memoryview(b"1" * 12), 0)
    header = gguf_header.read(path)
    assert header.metadata == {"general.name": "é", "n": 7}
    assert header.pairs == PAIRS
    assert header.tensors == {
        "a.weight": TensorInfo(shape=(3, 2), ggml_type=0, offset=0),
        "b": TensorInfo(shape=(5,), ggml_type=0, offset=32),
    }
    assert content_of(path, "a.weight", 24) == b"1" * 12 + b"2" * 12
    assert content_of(path, "b", 20) == b"b" * 20
    assert path.stat().st_size == layout.file_bytes == header.data_offset + 64


def test_parts_may_come_from_many_threads(tmp_path: Path) -> None:
    path, layout = tmp_path / "a.gguf", Layout({}, {"w": ((1 << 16,), 0, 1 << 18)})
    with GgufWriter(path, layout) as writer:

        def write(offset: int) -> None:
            for begin in range(offset * 64, 1 << 18, 8 * 64):
                writer.write("w", memoryview(bytes([offset]) * 64), begin)

        threads = [threading.Thread(target=write, args=(each,)) for each in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    expected = b"".join(bytes([each]) * 64 for each in range(8)) * (1 << 9)
    assert content_of(path, "w", 1 << 18) == expected


@pytest.mark.parametrize(
    "parts", [[], [("a.weight", 24, 0)], [("a.weight", 24, 0), ("b", 12, 0)]], ids=len
)
def test_a_tensor_that_is_not_complete_fails(
    parts: list[tuple[str, int, int]], tmp_path: Path
) -> None:
    with (
        pytest.raises(ChildFailed, match="'b'") as failed,
        GgufWriter(tmp_path / "a.gguf", Layout(PAIRS, TENSORS)) as writer,
    ):
        for name, size, begin in parts:
            writer.write(name, memoryview(bytes(size)), begin)
    assert failed.value.code == "release_check_failed"


def test_an_error_inside_is_not_covered_by_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(KeyError), GgufWriter(tmp_path / "a.gguf", Layout(PAIRS, TENSORS)):
        raise KeyError


def test_a_file_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"kept")
    with pytest.raises(FileExistsError), GgufWriter(path, Layout(PAIRS, TENSORS)):
        pass
    assert path.read_bytes() == b"kept"


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(tmp_path)]
    if subprocess.run(command, capture_output=True).returncode != 0:
        pytest.skip("mounting needs root")
    try:
        layout = Layout({}, {"w": ((1 << 20,), 0, 1 << 22)})
        with pytest.raises(OSError) as failed, GgufWriter(tmp_path / "a.gguf", layout):
            pass
        assert failed.value.errno == errno.ENOSPC
    finally:
        subprocess.run(["umount", "-l", str(tmp_path)], check=True)
