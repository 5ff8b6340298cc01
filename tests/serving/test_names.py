"""What a model's name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import NotFound
from appliance.records import Quantization, Release, ReleaseFile
from appliance.serving.names import gguf_path

MODEL = Release(
    name="m",
    created_at=1,
    job_id="j",
    base_model="b",
    adapter_directory="a",
    files=tuple(
        ReleaseFile(quantization=each, path=f"m-{each.value}.gguf", bytes=1, sha256="0")
        for each in (Quantization.Q4_K_M, Quantization.Q8_0)
    ),
)


def _catalogue(name):
    if name != MODEL.name:
        raise NotFound("model_not_found", name)
    return MODEL


@pytest.mark.parametrize(
    ("name", "file"),
    [("m", "m-Q4_K_M.gguf"), ("m@Q4_K_M", "m-Q4_K_M.gguf"), ("m@Q8_0", "m-Q8_0.gguf")],
)
def test_name_means_a_file(name, file):
    assert gguf_path(Path("/state"), _catalogue, name) == Path("/state") / file


@pytest.mark.parametrize(
    "name", ["", "x", "m@", "m@Q2_K", "m@q8_0", "m@Q8_0@Q8_0", "@Q8_0", "m@../x"]
)
def test_name_that_means_nothing_is_not_found(name):
    with pytest.raises(NotFound):
        gguf_path(Path("/state"), _catalogue, name)
