from __future__ import annotations

import json

import msgspec
import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from appliance.exports import ml_bom
from appliance.exports.provenance import Provenance
from tests.exports.records import provenance

WITHOUT_ADAPTER = msgspec.structs.replace(provenance().release, adapter_file=None)


@pytest.mark.parametrize(
    "known",
    [provenance(), provenance(release=WITHOUT_ADAPTER), provenance(data=(), versions={})],
)
def test_keeps_to_the_schema(known: Provenance) -> None:
    text = json.dumps(ml_bom.document(known))
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(text) is None


def test_a_document_that_does_not_keep_to_it_is_found() -> None:
    document = ml_bom.document(provenance())
    document["metadata"]["component"]["modelCard"]["task"] = "chat"
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document)) is not None


def test_names_what_the_model_is_made_of_by_digest() -> None:
    known = provenance()
    document = ml_bom.document(known)
    components = {each["bom-ref"]: each for each in document["components"]}
    digests = {
        name: each["hashes"][0]["content"] for name, each in components.items() if "hashes" in each
    }
    assert digests == {
        "data-training": "d" * 64,
        "file-Q4_K_M": "0" * 64,
        "file-Q8_0": "1" * 64,
        "adapter": "a" * 64,
    }
    assert {
        "name": "appliance:directory-sha256",
        "value": known.base.sha256,
    } in components["base-model"]["properties"]
    model = document["metadata"]["component"]
    assert {"name": "appliance:hyperparameter:r", "value": "16"} in model["properties"]
    assert model["modelCard"]["modelParameters"]["datasets"] == [{"ref": "data-training"}]
    assert set(document["dependencies"][0]["dependsOn"]) == set(components)


def test_the_same_model_gives_the_same_document() -> None:
    assert ml_bom.document(provenance()) == ml_bom.document(provenance())
