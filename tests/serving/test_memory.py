"""What an engine takes follows from the base's configuration, or else from the file itself."""

from __future__ import annotations

import json
import shutil

import pytest

from appliance.hardware import profiles
from appliance.hardware.fit import needs
from appliance.serving.memory import (
    adapter_budget_bytes,
    serving_bytes,
)
from appliance.settings import CHECKOUT
from appliance.store.store import Store
from tests.children import required_path
from tests.daemon_process import BASE, add_base
from tests.hardware.fit.test_shapes import LLAMA

PROFILE = profiles.load_all(CHECKOUT / "firmware_profiles")["cpu"]
# Of the starter model in the profile's context: 30 layers, 3 key heads of 64, keys and values, 16 bits.
CACHE = 2 * 30 * 3 * 64 * PROFILE.n_ctx * 2


@pytest.fixture
def store(state_dir):
    add_base(state_dir)
    opened = Store(state_dir)
    yield opened
    opened.close()


@pytest.mark.llama
@pytest.mark.parametrize("model", [BASE, f"ft:{BASE}:local:faults:x", "who-knows"])
@pytest.mark.parametrize("config", [LLAMA, {"model_type": "of-another-family"}])
def test_file_cache_and_engine_are_counted(store, model, config, tmp_path):
    path = tmp_path / "model.gguf"
    shutil.copy(required_path("APPLIANCE_TEST_STARTER_GGUF"), path)
    base = store.directory / "base_models" / BASE / "hf" / "config.json"
    base.write_text(json.dumps(config))
    # The catalogue says of this base that it was trained with half of the profile's context. As much as the
    # cache holds is kept once more, in the host's memory.
    known = config is LLAMA and BASE in model
    cache = CACHE // 2 if known else CACHE
    expected = path.stat().st_size + 2 * cache + needs.engine_bytes("cpu")
    if model == BASE:
        # Adapters can be attached to it, and to no other.
        expected += needs.ADAPTERS_LEAST_BYTES
    assert serving_bytes(store, PROFILE, model, path) == expected


def test_file_that_is_none_is_left_to_the_engine(store, tmp_path):
    path = tmp_path / "model.gguf"
    path.write_bytes(b"none")
    assert serving_bytes(store, PROFILE, "who-knows", path) == 4 + needs.engine_bytes("cpu")


def test_adapters_of_a_large_base_may_take_a_part_of_its_size(store, tmp_path):
    path = tmp_path / "model.gguf"
    with path.open("wb") as file:
        file.truncate(10 * needs.ADAPTERS_LEAST_BYTES)
    part = 10 * needs.ADAPTERS_LEAST_BYTES // needs.ADAPTERS_PART_OF_FILE
    assert adapter_budget_bytes(store, f"{BASE}@Q8_0", path) == part > needs.ADAPTERS_LEAST_BYTES
    assert adapter_budget_bytes(store, f"ft:{BASE}:local:faults:x", path) == 0
