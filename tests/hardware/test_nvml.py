"""What goes wrong with a driver or a GPU is said, and never taken for something else."""

from __future__ import annotations

import json

import pytest

from tests.hardware import replay

GPU = {
    "name": "NVIDIA GeForce RTX 4090",
    "memory_total": 24 << 30,
    "memory_used": 0,
    "compute_capability": "8.9",
}
HOST = {"machine": "x86_64", "mem_total_kb": 64 << 20, "mem_available_kb": 60 << 20}


def told(tmp_path, *gpus, **nvml):
    recorded = {"nvml": {"driver": "1", "cuda": 13000, "gpu": gpus, **nvml}, "host": HOST}
    return replay.profile(recorded, tmp_path)


def test_no_driver_is_no_problem(tmp_path):
    found = replay.profile({"host": HOST}, tmp_path)
    assert found["device"]["nvml"] == {"driver": None, "cuda": None, "gpus": [], "problems": []}
    assert found["profile"]["family"] == "cpu"


def test_driver_that_cannot_start_is_a_problem(tmp_path):
    replay.write_tree({"host": HOST}, tmp_path / "root")
    (tmp_path / "nvml").write_text("- init !18\n")
    done = replay.run_profile(tmp_path, "--json", "-")
    (problem,) = json.loads(done.stdout)["device"]["nvml"]["problems"]
    assert "version mismatch" in problem


@pytest.mark.parametrize("lost", [{"memory_total": "!15"}, {"handle": "!15"}])
def test_lost_gpu_is_left_out_and_named(tmp_path, lost):
    found = told(tmp_path, {**GPU, "memory_total": 16 << 30}, {**GPU, **lost})
    assert [gpu["memory_bytes"] for gpu in found["device"]["nvml"]["gpus"]] == [16 << 30]
    (problem,) = found["device"]["nvml"]["problems"]
    assert problem.startswith("GPU 1: ")
    assert found["profile"]["family"] == "discrete"


def test_only_lost_gpus_leave_the_cpu(tmp_path):
    found = told(tmp_path, {**GPU, "memory_total": "!15"})
    assert found["profile"]["family"] == "cpu"
    assert found["device"]["nvml"]["problems"]


def test_refused_detail_is_a_problem_and_the_gpu_still_counts(tmp_path):
    found = told(tmp_path, {**GPU, "uuid": "!4"})
    (gpu,) = found["device"]["nvml"]["gpus"]
    assert (gpu["uuid"], gpu["memory_bytes"]) == (None, 24 << 30)
    assert found["device"]["nvml"]["problems"] == ["GPU 0: UUID: Insufficient Permissions"]


def test_mig_without_instances_is_a_problem(tmp_path):
    found = told(tmp_path, {**GPU, "mig": 1})
    assert found["device"]["nvml"]["gpus"] == []
    assert "no instance" in found["device"]["nvml"]["problems"][0]


def test_operators_values_reach_the_profile_and_are_named(tmp_path):
    changes = tmp_path / "mine.toml"
    changes.write_text("n_ctx = 2048")
    recorded = {"nvml": {"driver": "1", "cuda": 13000, "gpu": [GPU]}, "host": HOST}
    replay.profile(recorded, tmp_path)
    done = replay.run_profile(tmp_path, "--json", "-", APPLIANCE_PROFILE_OVERRIDE_FILE=str(changes))
    found = json.loads(done.stdout)
    assert found["profile"]["n_ctx"] == 2048
    assert found["reason"].endswith(f"; {changes} changes n_ctx")


def test_largest_of_several_gpus_is_chosen(tmp_path):
    small = {**GPU, "name": "NVIDIA GeForce RTX 3080", "memory_total": 10 << 30}
    assert told(tmp_path, small, GPU)["profile"]["name"] == "rtx-4090"


def test_same_name_with_less_memory_is_another_device(tmp_path):
    rtx3060 = {**GPU, "name": "NVIDIA GeForce RTX 3060", "memory_total": 8 << 30}
    found = told(tmp_path, rtx3060)
    assert found["profile"]["name"] == "gpu-8gb"
    assert found["known"] is False


def test_versions_are_told(tmp_path):
    found = told(tmp_path, GPU, driver="570.12", cuda=12080)
    assert (found["device"]["nvml"]["driver"], found["device"]["nvml"]["cuda"]) == (
        "570.12",
        "12.8",
    )


BOTH = ({**GPU, "uuid": "GPU-aa11"}, {**GPU, "uuid": "GPU-bb22", "memory_total": 10 << 30})


@pytest.mark.parametrize(
    ("visible", "seen"),
    [
        ("GPU-bb22", ["GPU-bb22"]),
        ("GPU-b", ["GPU-bb22"]),
        ("GPU-bb22, GPU-aa11", ["GPU-aa11", "GPU-bb22"]),
        ("", []),
        ("-1", []),
    ],
)
def test_gpus_that_the_operator_leaves_out_do_not_count(tmp_path, monkeypatch, visible, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = told(tmp_path, *BOTH)["device"]["nvml"]
    assert [gpu["uuid"] for gpu in found["gpus"]] == seen
    assert found["problems"] == []


def test_name_of_no_gpu_is_a_problem(tmp_path, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-cc")
    found = told(tmp_path, *BOTH)["device"]["nvml"]
    assert found["gpus"] == []
    assert found["problems"] == ["CUDA_VISIBLE_DEVICES names no GPU that is there: 'MIG-cc'"]


@pytest.mark.parametrize("visible", ["1", "GPU-aa11,1", "0,-1"])
def test_gpus_chosen_by_number_are_a_problem(tmp_path, monkeypatch, visible):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = told(tmp_path, *BOTH)["device"]["nvml"]
    assert len(found["gpus"]) == 2
    (problem,) = found["problems"]
    assert "by their UUIDs" in problem
    assert visible in problem


def test_gpu_without_bfloat16_is_a_problem_and_still_counts(tmp_path):
    old = {**GPU, "name": "Tesla T4", "memory_total": 15 << 30, "compute_capability": "7.5"}
    found = told(tmp_path, old)["device"]["nvml"]
    assert len(found["gpus"]) == 1
    (problem,) = found["problems"]
    assert problem.startswith("GPU 0: compute capability 7.5 has no bfloat16")
