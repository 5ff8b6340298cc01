"""The bill of materials of a model: CycloneDX 1.6, machine-learning profile, as JSON.

Specification: https://cyclonedx.org/docs/1.6/json/. The same model gives the same document.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

import msgspec

from appliance.exports.provenance import DataUsed, Provenance
from appliance.records import GgufFile, ReleaseFile

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:finetuning-appliance:release")
_MODEL, _BASE = "model", "base-model"


def document(known: Provenance) -> dict[str, Any]:
    """Ready to be encoded."""
    release = known.release
    components = [_base(known), *map(_data, known.data), *map(_file, release.files)]
    if release.adapter_file is not None:
        components.append(_file_component("adapter", "adapter.gguf", release.adapter_file, []))
    components += [_software(name, version) for name, version in sorted(known.versions.items())]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(_NAMESPACE, release.files[0].sha256).urn,
        "version": 1,
        "metadata": {
            "timestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(release.created_at)),
            "component": _model(known),
        },
        "components": components,
        "dependencies": [
            {"ref": _MODEL, "dependsOn": [component["bom-ref"] for component in components]},
        ],
    }


def _model(known: Provenance) -> dict[str, Any]:
    plan = known.job.plan
    hyperparameters = msgspec.to_builtins(plan.hyperparameters)
    return {
        "type": "machine-learning-model",
        "bom-ref": _MODEL,
        "name": known.release.name,
        "version": known.release.job_id,
        "licenses": [{"license": {"name": known.base.licence}}],
        "pedigree": {"ancestors": [_base(known, ref=f"{_BASE}-ancestor")]},
        "modelCard": {
            "modelParameters": {
                "approach": {"type": "supervised"},
                "task": "text-generation",
                "modelArchitecture": known.base.architecture,
                "datasets": [{"ref": _data(each)["bom-ref"]} for each in known.data],
                "inputs": [{"format": "text"}],
                "outputs": [{"format": "text"}],
            },
            "quantitativeAnalysis": {"performanceMetrics": _metrics(known)},
        },
        "properties": _properties(
            {
                "job": known.job.id,
                "seed": known.job.seed,
                "technique": plan.technique,
                **{f"hyperparameter:{name}": value for name, value in hyperparameters.items()},
            }
        ),
    }


def _base(known: Provenance, ref: str = _BASE) -> dict[str, Any]:
    base = known.base
    return {
        "type": "machine-learning-model",
        "bom-ref": ref,
        "name": base.name,
        "description": f"from {base.source}",
        "licenses": [{"license": {"name": base.licence}}],
        "modelCard": {"modelParameters": {"modelArchitecture": base.architecture}},
        # Of a directory, over its files' names and digests: none that CycloneDX's hashes stand for.
        "properties": _properties(
            {
                "directory-sha256": base.sha256,
                "parameters": base.parameters,
                "context-length": base.context_length,
            }
        ),
    }


def _data(used: DataUsed) -> dict[str, Any]:
    return {
        "type": "data",
        "bom-ref": f"data-{used.use}",
        "name": used.id,
        "hashes": [{"alg": "SHA-256", "content": used.sha256}],
        "data": [{"type": "dataset", "name": used.use}],
        "properties": _properties({"rows": used.rows, "bytes": used.bytes}),
    }


def _file(file: ReleaseFile) -> dict[str, Any]:
    found = file.parity
    properties = (
        []
        if found is None
        else _properties(
            {
                "divergence-in-answers": found.in_answers.mean_kl,
                "divergence-in-prompts": found.in_prompts.mean_kl,
                "divergence-from-unmerged": found.unmerged.mean_kl,
                "answers": found.answers,
                "equal-answers": found.equal_answers,
            }
        )
    )
    name = f"model-{file.quantization}.gguf"
    return _file_component(f"file-{file.quantization}", name, file, properties)


def _file_component(
    ref: str, name: str, file: GgufFile, properties: list[dict[str, str]]
) -> dict[str, Any]:
    return {
        "type": "file",
        "bom-ref": ref,
        "name": name,
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "properties": [*_properties({"bytes": file.bytes}), *properties],
    }


def _software(name: str, version: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": f"software-{name}",
        "name": name,
        "version": version,
        "purl": f"pkg:pypi/{name}@{version}",
    }


def _metrics(known: Provenance) -> list[dict[str, str]]:
    training = known.training
    metrics = {"training loss": training.train_loss, "validation loss": training.validation_loss}
    return [
        {"type": name, "value": str(value)} for name, value in metrics.items() if value is not None
    ]


def _properties(values: dict[str, object]) -> list[dict[str, str]]:
    return [{"name": f"appliance:{name}", "value": str(value)} for name, value in values.items()]
