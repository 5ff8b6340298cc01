from __future__ import annotations

import json
from typing import Any

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from appliance.exports import ml_bom
from appliance.exports.provenance import Provenance
from tests.exports.records import continued, provenance, written


def document_of(known: Provenance) -> Any:
    return ml_bom.document(known, written(known))


@pytest.mark.parametrize(
    "known", [provenance(), continued(), provenance(data=(), versions={"torch": "2.13.0+cpu"})]
)
def test_keeps_to_the_schema(known: Provenance) -> None:
    text = json.dumps(document_of(known))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_a_document_that_does_not_keep_to_it_is_found() -> None:
    document = document_of(provenance())
    document["metadata"]["component"]["modelCard"]["task"] = "chat"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is not None


def test_names_what_the_model_is_made_of_by_digest() -> None:
    known = provenance()
    document = document_of(known)
    components = {each["bom-ref"]: each for each in document["components"]}
    digests = {
        name: each["hashes"][0]["content"] for name, each in components.items() if "hashes" in each
    }
    assert digests == {
        "data-ftjob-abc-training": "d" * 64,
        "file-model-Q4_K_M.gguf": "0" * 64,
        "file-model-Q8_0.gguf": "1" * 64,
        "file-adapter.gguf": "a" * 64,
    }
    assert {
        "name": "appliance:directory-sha256",
        "value": known.base.sha256,
    } in components["base-model"]["properties"]
    model = document["metadata"]["component"]
    assert {"name": "appliance:hyperparameter:r", "value": "16"} in model["properties"]
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data-ftjob-abc-training"}]
    assert set(document["dependencies"][0]["dependsOn"]) == set(components)


def test_the_same_model_gives_the_same_document() -> None:
    assert document_of(provenance()) == document_of(provenance())


def test_a_model_that_goes_on_from_another_has_it_among_its_ancestors() -> None:
    document = document_of(continued())
    ancestors = document["metadata"]["component"]["pedigree"]["ancestors"]
    assert [each["name"] for each in ancestors] == ["ft:tiny-base::old", "tiny-base"]
    old = next(each for each in document["components"] if each["name"] == "file-0")
    assert "no longer here" in old["description"]
    assert "hashes" not in old
