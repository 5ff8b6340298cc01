"""A release asks for its room first, and says how much is missing."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from appliance.errors import OutOfDisk
from appliance.records import Quantization
from tests.release.test_releasing import release_spec

pytestmark = [pytest.mark.torch, pytest.mark.llama]


def test_needs_room_for_the_largest_moment(tiny: Path) -> None:
    from appliance.release import releasing

    parameters = 3_219_776
    both = (Quantization.Q4_K_M, Quantization.Q8_0)
    merging = releasing.bytes_needed(tiny, both, merging=True)
    assert merging == parameters * 8 + 3 * releasing.METADATA_BYTES
    plain = releasing.bytes_needed(tiny, both, merging=False)
    quantized = int(parameters * (7.5 + 9.0) / 8)
    assert plain == parameters * 4 + quantized + 3 * releasing.METADATA_BYTES


def test_a_full_disk_is_told_with_both_numbers(
    tiny: Path, converter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from appliance import batch
    from appliance.release import releasing

    usage = shutil.disk_usage(tmp_path)._replace(free=1 << 20)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    (tmp_path / "spec.json").write_text(json.dumps(release_spec(tiny, None, converter)))
    with pytest.raises(OutOfDisk, match=r"needs 0\.1 GiB .* are 0\.0 GiB") as failed:
        releasing.release(tmp_path, batch.Reporter(tmp_path))
    assert failed.value.code == "out_of_disk"
    assert not (tmp_path / "intermediate").exists()


@pytest.mark.parametrize("mixes", [("Q4_K_M",), ("Q8_0",), ("Q4_K_M", "Q8_0")])
def test_room_that_is_predicted_is_the_room_that_is_asked_for(
    starter: Path, mixes: tuple[str, ...]
) -> None:
    from appliance.hardware import stored_base
    from appliance.hardware.fit import needs
    from appliance.release import releasing

    base = stored_base.read(starter)
    assert base is not None
    asked = releasing.bytes_needed(starter, [Quantization(mix) for mix in mixes], merging=True)
    assert needs.disk_bytes(base, mixes) == asked


def test_results_count_where_they_are_larger_than_the_merged_weights(starter: Path) -> None:
    from appliance.hardware import stored_base
    from appliance.hardware.fit import gguf_size, needs

    base = stored_base.read(starter)
    assert base is not None
    three, four = (needs.disk_bytes(base, ["F16"] * count) for count in (3, 4))
    assert four - three == gguf_size.file_bytes(base, "F16") + (32 << 20)
