"""The profile files: what is inherited, what is refused, what the operator may change."""

from __future__ import annotations

import pytest

from appliance.errors import ConfigurationError
from appliance.hardware import profiles
from appliance.settings import CHECKOUT

SHIPPED = CHECKOUT / "firmware_profiles"
FAMILY = (SHIPPED / "gpu.toml").read_text()


@pytest.fixture
def load(tmp_path):
    """`load(name=text, …)`: the profiles of a directory with these files."""

    def through(**files: str):
        for name, text in files.items():
            (tmp_path / f"{name}.toml").write_text(text)
        return profiles.load_all(tmp_path)

    return through


def refused(load, **files: str) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(**files)
    assert caught.value.code == "invalid_profile"
    return caught.value.message


def test_every_shipped_profile_is_whole():
    found = profiles.load_all(SHIPPED)
    assert len(found) == len(list(SHIPPED.glob("*.toml"))) == 29
    assert {each.family for each in found.values()} == {"discrete", "unified", "cpu"}
    named = [name for each in found.values() for name in (*each.gpu_names, *each.modules)]
    assert len(named) == len(set(named))


@pytest.mark.parametrize("name", sorted(profiles.load_all(SHIPPED)))
def test_sizes_of_a_shipped_profile_make_sense(name):
    profile = profiles.load_all(SHIPPED)[name]
    assert set(profile.base_sizes) == {"qlora", "lora"}
    for sizes in profile.base_sizes.values():
        assert sizes.default_billions <= sizes.max_billions
    qlora, lora = profile.base_sizes["qlora"], profile.base_sizes["lora"]
    assert lora.max_billions <= qlora.max_billions
    # Half a byte a parameter at the very least, in what the system leaves.
    assert qlora.max_billions * 1e9 / 2 < max(profile.memory_gib, 8) * (1 << 30)
    assert (profile.thermal_limit_celsius is None) == (profile.thermal_source is None)


def test_values_are_inherited_over_several_steps(load):
    found = load(
        family=FAMILY,
        middle='inherits = "family"\nslots = 9\ngpu_names = ["M"]',
        device='inherits = "middle"\nmax_length = 77\nbase_sizes.lora.max_billions = 0.55',
    )
    device, family = found["device"], found["family"]
    assert (device.max_length, device.slots, device.n_ctx) == (77, 9, family.n_ctx)
    assert device.base_sizes["lora"].max_billions == 0.55
    assert device.base_sizes["lora"].default_billions == family.base_sizes["lora"].default_billions
    assert device.base_sizes["qlora"] == family.base_sizes["qlora"]
    assert found["middle"].gpu_names == ("M",)
    assert device.gpu_names == ()


def test_all_faults_of_all_files_are_told_at_once(load):
    told = refused(
        load,
        family=FAMILY,
        a='inherits = "family"\nslots = 0\nspeed = 3\nkv_type = "f64"',
        b='inherits = "nobody"\nslots = 1',
        c="not toml",
        d='inherits = "e"',
        e='inherits = "d"',
        f='inherits = ["family"]\nname = "g"',
    )
    for words in (
        "a.toml: slots: ",
        "a.toml: speed: there is no such value of a profile",
        "a.toml: kv_type: ",
        "b.toml: inherits: 'nobody' does not exist",
        "b.toml: technique is missing",
        "c.toml: ",
        "inherits itself",
        "f.toml: inherits: ['family'] does not exist",
        "f.toml: name: a profile is called as its file is",
    ):
        assert words in told


def test_directory_without_profiles_is_refused(load):
    assert "there is none in it" in refused(load)


def test_operator_changes_single_values(load, tmp_path):
    profile = load(family=FAMILY)["family"]
    path = tmp_path / "override"
    path.write_text("")
    assert profiles.override(profile, path) == profile
    path.write_text("n_ctx = 123\nthermal_limit_celsius = 70\nbase_sizes.qlora.max_billions = 9")
    changed = profiles.override(profile, path)
    assert (changed.n_ctx, changed.thermal_limit_celsius) == (123, 70)
    assert changed.slots == profile.slots
    sizes, before = changed.base_sizes, profile.base_sizes
    assert sizes["qlora"].max_billions == 9
    assert sizes["qlora"].default_billions == before["qlora"].default_billions
    assert sizes["lora"] == before["lora"]


def test_operators_file_is_only_optional_at_its_usual_place(load, tmp_path, monkeypatch):
    profile = load(family=FAMILY)["family"]
    missing = tmp_path / "missing.toml"
    with pytest.raises(ConfigurationError, match=r"missing\.toml"):
        profiles.override(profile, missing)
    monkeypatch.setattr(profiles, "OVERRIDE_FILE", missing)
    assert profiles.override(profile, missing) == profile


def test_operators_faults_are_told_at_once(load, tmp_path):
    profile = load(family=FAMILY)["family"]
    path = tmp_path / "override"
    path.write_text('n_ctx = "many"\nmemory_gib = 99\nsped = 1\ntechnique = "full"')
    with pytest.raises(ConfigurationError) as caught:
        profiles.override(profile, path)
    assert "technique: should be one of qlora, lora, found 'full'" in caught.value.message
    for words in ("n_ctx: ", "memory_gib: is the profile's own", "sped: there is no such"):
        assert words in caught.value.message


@pytest.mark.parametrize("size", ["inf", "nan", "-1", "1e308", "true"])
def test_reserve_that_is_no_size_is_refused(load, tmp_path, size):
    path = tmp_path / "override"
    path.write_text(f"os_reserve_gib = {size}")
    with pytest.raises(ConfigurationError, match="os_reserve_gib"):
        profiles.override(load(family=FAMILY)["family"], path)
