"""A release asks for its room first, and says how much is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from appliance.errors import OutOfDisk
from appliance.records import Quantization
from tests.release.specs import base_spec, trained_spec

pytestmark = [
    pytest.mark.torch,
    pytest.mark.llama,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


def test_a_base_needs_room_for_full_precision_beside_the_results(tiny: Path) -> None:
    from appliance.release import base_conversion

    parameters = 3_219_776
    both = (Quantization.Q4_K_M, Quantization.Q8_0)
    quantized = int(parameters * (32 + 7.5 + 9.0) / 8)
    needed = base_conversion.bytes_needed(tiny, both)
    assert needed == quantized + 3 * base_conversion.METADATA_BYTES


@pytest.mark.parametrize("trained", [False, True])
def test_a_full_disk_is_told_with_both_numbers(
    trained: bool,
    tiny: Path,
    tiny_file: Path,
    adapter: Path,
    converter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from appliance import batch
    from appliance.release import releasing

    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    spec = trained_spec(tiny, tiny_file, adapter, converter)
    if not trained:
        spec = base_spec(tiny, converter)
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    with pytest.raises(OutOfDisk, match=r"needs 0\.\d GiB .* are 0\.0 GiB") as failed:
        releasing.release(tmp_path, batch.Reporter(tmp_path))
    assert failed.value.code == "out_of_disk"
    assert not (tmp_path / "intermediate").exists()


@pytest.mark.parametrize("mixes", [("Q4_K_M",), ("Q8_0",), ("Q4_K_M", "Q8_0")])
def test_room_that_is_predicted_suffices_and_is_little_more_than_what_is_written(
    starter: Path, starter_gguf: Path, mixes: tuple[str, ...]
) -> None:
    from appliance.hardware import stored_base
    from appliance.hardware.fit import needs
    from appliance.release import streaming

    base = stored_base.read(starter)
    assert base is not None
    layouts = streaming.layouts(starter_gguf, [Quantization(mix) for mix in mixes], "name")
    written = sum(each.file_bytes for each in layouts.values())
    adapter = 2 * 4 * base.adapter_parameters(16)
    predicted = needs.disk_bytes(base, mixes, 16)
    assert written + adapter < predicted < 1.01 * (written + adapter) + (32 << 20) * len(mixes)
