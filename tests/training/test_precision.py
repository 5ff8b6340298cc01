"""bfloat16 only where the device has instructions for it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytestmark = pytest.mark.torch

CPUS = [
    ("processor\t: 0\nflags\t\t: fpu avx2 avx512f avx512_bf16\n", "bfloat16"),
    ("flags\t\t: fpu avx2 amx_bf16 amx_tile\n", "bfloat16"),
    ("BogoMIPS\t: 62.5\nFeatures\t: fp asimd bf16 i8mm\n", "bfloat16"),
    ("flags\t\t: fpu avx avx2 fma\n", "float32"),
    ("flags\t\t: fpu avx2 avx512f avx512_vnni\n", "float32"),
    ("Features\t: fp asimd crc32\n", "float32"),
    ("processor\t: 0\n", "float32"),
]


@pytest.mark.parametrize(("cpuinfo", "expected"), CPUS)
def test_format_follows_the_cpu(
    cpuinfo: str, expected: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from appliance.training import precision

    monkeypatch.setattr(precision, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "cpuinfo").write_text(cpuinfo)
    dtype, reason = precision.choose()
    assert dtype is getattr(torch, expected)
    assert expected in reason
