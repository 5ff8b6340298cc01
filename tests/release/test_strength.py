"""How much of an adapter is in a release, told from its weights, in every type."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from appliance import durable
from appliance.child_records import ReleaseResult
from appliance.records import Strength

pytestmark = [
    pytest.mark.torch,
    pytest.mark.llama,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


@pytest.mark.slow
def test_a_release_has_what_was_trained_in_every_type_that_it_was_written_in(
    released: Path,
) -> None:
    files = durable.read_json(released / "result.json", ReleaseResult).files
    assert len(files) == 2
    for file in files:
        assert file.parity is not None
        found = file.parity.strength
        assert found is not None
        assert found.slope == pytest.approx(1, abs=0.05 + 4 * found.error)
        assert found.error < 0.05


def written(path: Path, values: Any, kind: str) -> None:
    """A GGUF with one tensor."""
    from appliance.release import ggml
    from appliance.release.gguf_writer import GgufWriter, Layout

    number = ggml.types_by_name()[kind]
    rows, columns = values.shape
    size = rows * ggml.row_bytes(number, columns)
    with GgufWriter(path, Layout({}, {"w": ((columns, rows), number, size)})) as writer:
        writer.write("w", ggml.quantize_rows(values, number), 0)


@pytest.fixture
def dequantizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader of types comes from whichever `gguf` this process has."""
    pytest.importorskip("gguf.quants")


@pytest.mark.usefixtures("dequantizer")
@pytest.mark.parametrize("kind", ["f16", "q8_0", "q6_K", "q5_K", "q4_K", "q2_K", "q5_0"])
@pytest.mark.parametrize("factor", [0.0, 0.5, 1.0, 2.0])
def test_the_scale_is_told_through_the_noise_of_the_type(
    tmp_path: Path, kind: str, factor: float
) -> None:
    import numpy as np

    from appliance.release import strength
    from appliance.release.strength import Reference

    chance = np.random.default_rng(0)
    base = chance.normal(size=(512, 512)).astype(np.float32)
    low_rank = chance.normal(size=(512, 8)) @ chance.normal(size=(8, 512))
    added = (0.02 * low_rank / low_rank.std()).astype(np.float32)
    written(tmp_path / "w.gguf", base + np.float32(factor) * added, kind)
    found = strength.measure(tmp_path / "w.gguf", [Reference("w", base, added)])
    assert found is not None
    # Coarse types make everything a little smaller.
    assert found.slope == pytest.approx(factor, abs=0.1 * factor + 4 * found.error)
    assert strength.keeps(found) == (factor == 1)
    assert bool(strength.faults(found)) == (factor != 1)


@pytest.mark.usefixtures("dequantizer")
@pytest.mark.parametrize("kind", ["q8_0", "q4_K", "q2_K"])
@pytest.mark.parametrize("sign", [1, -1])
def test_an_adapter_that_goes_along_with_the_base_is_told_apart_from_what_the_type_shrinks(
    tmp_path: Path, kind: str, sign: int
) -> None:
    import numpy as np

    from appliance.release import strength
    from appliance.release.strength import Reference

    chance = np.random.default_rng(0)
    low_rank = chance.normal(size=(1024, 8)) @ chance.normal(size=(8, 1024))
    low_rank /= low_rank.std()
    base = (chance.normal(size=(1024, 1024)) + 0.3 * low_rank).astype(np.float32)
    added = (sign * 0.02 * low_rank).astype(np.float32)
    correlation = float(np.corrcoef(base.ravel(), added.ravel())[0, 1])
    assert abs(correlation) > 0.25
    written(tmp_path / "w.gguf", base + added, kind)
    found = strength.measure(tmp_path / "w.gguf", [Reference("w", base, added)])
    assert found is not None
    assert found.slope == pytest.approx(1, abs=0.1)
    assert strength.keeps(found)


@pytest.mark.usefixtures("dequantizer")
def test_a_base_on_the_grid_of_another_type_swallows_the_adapter_and_that_is_seen(
    tmp_path: Path,
) -> None:
    import importlib

    import numpy as np

    from appliance.release import ggml, strength
    from appliance.release.strength import Reference

    chance = np.random.default_rng(0)
    values = chance.normal(size=(512, 512)).astype(np.float32)
    blocks = np.frombuffer(ggml.quantize_rows(values, 3), np.uint8).reshape(512, -1)
    kind = importlib.import_module("gguf.constants").GGMLQuantizationType(3)
    # As of a base model that was imported from a GGUF in Q4_1.
    base = importlib.import_module("gguf.quants").dequantize(blocks, kind)
    low_rank = chance.normal(size=(512, 8)) @ chance.normal(size=(8, 512))
    added = (0.02 * low_rank / low_rank.std()).astype(np.float32)
    kept = {}
    for name in ("q4_K", "q8_0"):
        written(tmp_path / f"{name}.gguf", base + added, name)
        kept[name] = strength.measure(tmp_path / f"{name}.gguf", [Reference("w", base, added)])
    assert strength.keeps(kept["q8_0"])
    assert not strength.keeps(kept["q4_K"])
    assert kept["q4_K"] is not None
    assert kept["q4_K"].slope < 0.5
    (fault,) = strength.faults(kept["q4_K"])
    assert "publisher's safetensors" in fault


def test_nothing_is_claimed_where_nothing_can_be_told(tmp_path: Path) -> None:
    import numpy as np

    from appliance.release import strength
    from appliance.release.strength import Reference

    values = np.ones((1, 256), np.float32)
    written(tmp_path / "w.gguf", values, "f16")
    nothing = strength.measure(tmp_path / "w.gguf", [Reference("w", values, 0 * values)])
    assert nothing is None
    assert strength.measure(tmp_path / "w.gguf", []) is None
    assert strength.keeps(None)
    assert strength.faults(None) == []
    assert "too little to tell" in strength.describe(None)
    unsure = Strength(slope=0.0, error=0.2)
    assert strength.keeps(unsure)
    assert strength.describe(unsure) == strength.describe(None)
    assert strength.describe(Strength(slope=0.98, error=0.01)).startswith("0.98 of the adapter")
