"""The catalogue's models are what they are called."""

from __future__ import annotations

import re

import pytest

from appliance.errors import ConfigurationError
from appliance.hardware import catalogue
from appliance.settings import CHECKOUT

SHIPPED = CHECKOUT / "firmware_profiles"
MODELS = catalogue.load(SHIPPED)


def test_models_are_many_and_in_order():
    parameters = [model.shape.parameters for model in MODELS.values()]
    assert len(MODELS) == 21
    assert parameters == sorted(parameters)


@pytest.mark.parametrize("name", MODELS)
def test_shape_has_as_many_parameters_as_the_name_says(name):
    number, unit = re.search(r"(\d+(?:\.\d+)?)([mb])", name.split("-", 1)[1]).groups()
    named = float(number) * {"m": 1e6, "b": 1e9}[unit]
    # Publishers leave out embeddings, or round to a whole number.
    assert named == pytest.approx(MODELS[name].shape.parameters, rel=0.25)
    assert name.split("-")[0] in MODELS[name].repository.lower()


# model.safetensors.index.json of the publishers, divided by the bytes of an element.
@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("smollm2-135m-instruct", 134_515_008),
        ("qwen2.5-0.5b-instruct", 494_032_768),
        ("qwen2.5-7b-instruct", 7_615_616_512),
        ("llama-3.1-8b-instruct", 8_030_261_248),
        ("llama-3.1-70b-instruct", 70_553_706_496),
    ],
)
def test_parameters_are_counted_to_the_last(name, parameters):
    assert MODELS[name].shape.parameters == parameters


@pytest.mark.parametrize("content", ["no toml", '[a]\nrepository = "r"', "[a]\nextra = 1"])
def test_faulty_catalogue_is_refused(tmp_path, content):
    path = tmp_path / catalogue.CATALOGUE
    path.parent.mkdir()
    path.write_text(content)
    with pytest.raises(ConfigurationError) as caught:
        catalogue.load(tmp_path)
    assert caught.value.code == "invalid_catalogue"
