"""The cache of a file follows from its own metadata, whatever the architecture."""

from __future__ import annotations

import pytest

from appliance import gguf_header
from appliance.hardware.fit.kv_cache import cache_bytes, cache_bytes_of_file
from appliance.hardware.fit.shapes import of_config
from tests.children import required_path
from tests.hardware.fit.test_shapes import LLAMA

GIB = 1 << 30


def metadata(architecture: str, layers: int, **attention: object) -> dict[str, object]:
    return {
        "general.architecture": architecture,
        f"{architecture}.block_count": layers,
        f"{architecture}.context_length": 65536,
        f"{architecture}.embedding_length": 3072,
        **{f"{architecture}.attention.{name}": value for name, value in attention.items()},
    }


# From the config.json that the publishers give: layers, query heads, key heads, size of a head.
@pytest.mark.parametrize(
    ("found", "n_ctx", "gib"),
    [
        (metadata("smollm3", 36, head_count=16, head_count_kv=4, key_length=128, value_length=128),
         32768, 2.25),
        (metadata("gemma2", 42, head_count=16, head_count_kv=8, key_length=256, value_length=256),
         8192, 2.625),
        (metadata("phi3", 32, head_count=32, head_count_kv=32), 4096, 1.5),
        (metadata("phi3", 32, head_count=32), 4096, 1.5),
        # Half of the layers have no attention.
        (metadata("lfm2", 32, head_count=32, head_count_kv=[32, 0] * 16), 4096, 0.75),
    ],
)  # fmt: skip
def test_cache_follows_from_the_metadata(found, n_ctx, gib):
    assert cache_bytes_of_file(found, n_ctx) == gib * GIB


def test_context_is_no_longer_than_the_model_was_trained_with():
    found = metadata("phi3", 32, head_count=32)
    assert cache_bytes_of_file(found, 1 << 20) == cache_bytes_of_file(found, 65536)


@pytest.mark.llama
def test_file_and_configuration_agree():
    header = gguf_header.read(required_path("APPLIANCE_TEST_STARTER_GGUF"))
    shape = of_config(LLAMA)
    assert shape is not None
    assert cache_bytes_of_file(header.metadata, 4096) == cache_bytes(shape, 4096, "f16")


@pytest.mark.parametrize(
    "changed",
    [
        {"head_count": 0},
        {"head_count": -1},
        {"head_count": []},
        {"head_count": "many"},
        {"head_count": 32, "head_count_kv": 1 << 40},
        {"head_count": 32, "head_count_kv": [-5] * 32},
        {"head_count": 32, "key_length": 1.5},
        {},
    ],
)
def test_metadata_that_say_nothing_sensible_are_no_cache(changed):
    assert cache_bytes_of_file(metadata("phi3", 32, **changed), 4096) is None
