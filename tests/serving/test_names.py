"""What a model's name means."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.errors import NotFound
from appliance.records import BaseModel, GgufFile, Quantization, Release, ReleaseFile
from appliance.serving.names import Target, target


def _files(name):
    return tuple(
        ReleaseFile(quantization=each, path=f"{name}-{each.value}.gguf", bytes=1, sha256="0")
        for each in (Quantization.Q4_K_M, Quantization.Q8_0)
    )


BASE = BaseModel(
    name="b",
    created_at=1,
    architecture="llama",
    parameters=1,
    context_length=1,
    licence="l",
    source="s",
    sha256="0",
    directory="d",
    files=_files("b"),
)
MODEL = Release(
    name="m",
    created_at=1,
    job_id="j",
    base_model="b",
    adapter_directory="a",
    files=_files("m"),
    adapter_file=GgufFile(path="adapter.gguf", bytes=1, sha256="0"),
)
OLD = Release(
    name="old", created_at=1, job_id="j", base_model="b", adapter_directory="a", files=_files("old")
)
STATE = Path("/state")


def _catalogue(name):
    for model in (BASE, MODEL, OLD):
        if model.name == name:
            return model
    raise NotFound("model_not_found", name)


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("m", "m-Q4_K_M.gguf"),
        ("m@Q4_K_M", "m-Q4_K_M.gguf"),
        ("m@Q8_0", "m-Q8_0.gguf"),
        ("b@Q8_0", "b-Q8_0.gguf"),
    ],
)
def test_name_means_a_file(name, file):
    assert target(STATE, _catalogue, name) == Target(name, STATE / file)


def test_adapter_of_a_release_goes_to_the_file_of_its_base():
    expected = Target("b", STATE / "b-Q4_K_M.gguf", STATE / "adapter.gguf")
    assert target(STATE, _catalogue, "m@adapter") == expected


@pytest.mark.parametrize(
    "name", ["", "x", "m@", "m@Q2_K", "m@q8_0", "m@Q8_0@Q8_0", "@Q8_0", "m@../x", "m@Adapter"]
)
def test_name_that_means_nothing_is_not_found(name):
    with pytest.raises(NotFound):
        target(STATE, _catalogue, name)


@pytest.mark.parametrize("name", ["b@adapter", "old@adapter"])
def test_model_without_an_adapter_of_its_own_has_none_to_ask_for(name):
    with pytest.raises(NotFound, match="Q4_K_M, Q8_0; found 'adapter'"):
        target(STATE, _catalogue, name)
