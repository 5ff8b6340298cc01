"""Every recorded device ends in the right profile, and says where its record comes from."""

from __future__ import annotations

import pytest

from tests.hardware import replay

# Whose profile a device without one of its own gets.
NEAREST = {
    "rtx-4060-8gb": "gpu-8gb",
    "rtx-a6000": "gpu-40gb",
    "a100-80gb-mig": "gpu-16gb",
    "cpu-avx512": "cpu",
    "cpu-arm": "cpu",
}
JETSONS = ("orin-nano-8gb", "orin-nx-16gb", "agx-orin-32gb", "agx-orin-64gb", "thor")

each_device = pytest.mark.parametrize("path", replay.DEVICES, ids=lambda path: path.stem)


def test_devices_are_many():
    names = {path.stem for path in replay.DEVICES}
    gpus = [path for path in replay.DEVICES if "nvml" in replay.read(path)]
    assert len(gpus) >= 12
    assert names >= {*NEAREST, *JETSONS, "gb10"}


@each_device
def test_device_gets_its_profile(path):
    told = replay.profile_of_recorded(path)
    assert told["profile"]["name"] == NEAREST.get(path.stem, path.stem), told["reason"]
    assert told["device"]["nvml"]["problems"] == []
    nearest = path.stem in NEAREST and told["profile"]["family"] != "cpu"
    assert told["known"] != nearest
    assert ("no profile that fits names" in told["reason"]) == nearest


@each_device
def test_record_says_where_every_value_comes_from(path):
    recorded = replay.read(path)
    sources = recorded.pop("sources")
    del recorded["title"]
    assert set(sources) == set(replay.leaves(recorded))
    assert all(each.startswith(("sourced: ", "assumed: ")) for each in sources.values())


@pytest.mark.parametrize("name", [*JETSONS, "gb10"])
def test_gpu_without_memory_of_its_own_counts_the_hosts(name):
    path = replay.HERE / "devices" / f"{name}.toml"
    recorded, told = replay.read(path), replay.profile_of_recorded(path)
    assert told["profile"]["family"] == "unified"
    assert told["memory_bytes"] == recorded["host"]["mem_total_kb"] * 1024
    assert [gpu["memory_bytes"] for gpu in told["device"]["nvml"]["gpus"]] == [None] * len(
        recorded.get("nvml", {}).get("gpu", [])
    )


@pytest.mark.parametrize("name", JETSONS)
def test_board_is_read_from_the_device_tree(name):
    path = replay.HERE / "devices" / f"{name}.toml"
    recorded, board = replay.read(path), replay.profile_of_recorded(path)["device"]["tegra"]
    assert board["model"] == recorded["tree"]["model"]
    assert board["chip"] == ("tegra264" if name == "thor" else "tegra234")
    assert board["module"].startswith("p3")
    assert (board["l4t"] is None) == ("nv_tegra_release" not in recorded["tree"])
    assert (board["jetpack"] is None) == (board["l4t"] is None)


def test_instances_count_where_mig_is_on():
    path = replay.HERE / "devices" / "a100-80gb-mig.toml"
    recorded, told = replay.read(path), replay.profile_of_recorded(path)
    instances = recorded["nvml"]["gpu"][0]["instance"]
    found = told["device"]["nvml"]["gpus"]
    assert [gpu["name"] for gpu in found] == [each["name"] for each in instances]
    assert all(gpu["mig"] for gpu in found)
    assert told["memory_bytes"] == max(each["memory_total"] for each in instances)


def test_document_is_what_the_replay_says():
    assert replay.DOCUMENT.read_text(encoding="utf-8") == replay.document(), (
        "run: python -m tests.hardware.replay"
    )
