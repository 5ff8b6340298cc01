"""A device is told only of models that a job on it would be accepted with."""

from __future__ import annotations

import msgspec
import pytest

from appliance.hardware import catalogue, profiles
from appliance.hardware.fit import needs
from appliance.hardware.fit.machine import GIB, Machine
from appliance.hardware.profiles import HardwareProfile
from appliance.jobs.recommend import Recommendation, recommend
from appliance.settings import CHECKOUT

SHIPPED = CHECKOUT / "firmware_profiles"
MODELS = catalogue.load(SHIPPED)
PROFILES = profiles.load_all(SHIPPED)


def machine(profile: HardwareProfile, host_gib: float = 62) -> Machine:
    """The smallest that the profile is for; a CPU with 8 GiB."""
    size = round((max(profile.memory_gib, 8 if profile.family == "cpu" else 0)) * GIB)
    size -= round(profile.os_reserve_gib * GIB)
    host = round(host_gib * GIB) if profile.family == "discrete" else size
    return Machine(family=profile.family, device_bytes=size, host_bytes=host, bfloat16=True)


def found(name: str, **options: float) -> dict[str, Recommendation]:
    profile = PROFILES[name]
    listed = recommend(profile, machine(profile, **options), MODELS)
    return {each.name: each for each in listed}


@pytest.mark.parametrize("name", sorted(PROFILES))
def test_every_device_is_told_of_something_that_suits_and_fits_it(name):
    profile = PROFILES[name]
    where = machine(profile)
    listed = list(found(name).values())
    order = [(not each.suits, -each.parameters) for each in listed]
    assert order == sorted(order)
    assert listed[0].suits
    assert all(("within" in each.reason) == each.suits for each in listed)
    for each in listed:
        shape = MODELS[each.name].shape
        assert each.training_bytes <= where.device_bytes
        assert needs.release_bytes(shape) <= where.host_bytes
        serving = needs.serving_bytes(shape, each.file_bytes, profile.n_ctx, "f16", profile.family)
        assert serving <= where.device_bytes
        for technique in each.techniques:
            assert each.parameters <= profile.base_sizes[technique].max_billions * 1e9


def test_technique_that_a_model_is_too_large_for_is_left_out():
    listed = found("rtx-4090", host_gib=100)
    assert listed["qwen3-8b"].techniques == ("qlora", "lora")
    assert listed["qwen3-14b"].techniques == ("qlora",)
    assert "slow" in listed["qwen3-14b"].reason
    assert "llama-3.1-70b-instruct" not in listed


def test_release_beside_a_card_needs_the_hosts_memory():
    assert "qwen3-8b" in found("rtx-4090", host_gib=4)
    assert "qwen3-8b" not in found("rtx-4090", host_gib=2)


def test_technique_that_a_profile_has_no_sizes_for_is_left_out():
    profile = PROFILES["rtx-4090"]
    one = msgspec.structs.replace(
        profile, technique="lora", base_sizes={"qlora": profile.base_sizes["qlora"]}
    )
    listed = recommend(one, machine(one), MODELS)
    assert {each.techniques for each in listed} == {("qlora",)}


def test_device_with_hardly_any_memory_is_told_of_nothing():
    profile = PROFILES["cpu"]
    where = Machine(family="cpu", device_bytes=GIB // 2, host_bytes=GIB // 2, bfloat16=True)
    assert recommend(profile, where, MODELS) == []


def test_what_suits_is_said_of_the_technique_that_a_job_would_take():
    profile = msgspec.structs.replace(PROFILES["rtx-4090"], technique="lora")
    listed = {each.name: each for each in recommend(profile, machine(profile), MODELS)}
    assert listed["qwen3-4b"].techniques[0] == "lora"
    assert "that suit lora here" in listed["qwen3-4b"].reason
