"""The bill of materials of a model: CycloneDX 1.6, machine-learning profile, as JSON.

Specification: https://cyclonedx.org/docs/1.6/json/. The same files give the same document.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any

import msgspec

from appliance.exports.provenance import DataUsed, Provenance, Written
from appliance.records import Job

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "urn:finetuning-appliance:release")
_MODEL, _BASE = "model", "base-model"


def document(known: Provenance, files: Sequence[Written]) -> dict[str, Any]:
    """Of an export that holds `files`; ready to be encoded."""
    release = known.release
    components = [_base(known), *map(_data, known.data), *map(_file, files)]
    components += [_software(name, version) for name, version in sorted(known.versions.items())]
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": uuid.uuid5(_NAMESPACE, " ".join(each.sha256 for each in files)).urn,
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
        "pedigree": {
            "ancestors": [
                *map(_earlier, known.earlier_jobs),
                _base(known, ref=f"{_BASE}-ancestor"),
            ]
        },
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


def _earlier(job: Job) -> dict[str, Any]:
    return {
        "type": "machine-learning-model",
        "bom-ref": f"earlier-{job.id}",
        "name": job.fine_tuned_model or job.id,
        "version": job.id,
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
    component: dict[str, Any] = {
        "type": "data",
        "bom-ref": f"data-{used.job_id}-{used.use}",
        "name": used.id,
        "data": [{"type": "dataset", "name": used.use}],
    }
    if used.sha256 is None:
        return {**component, "description": "of a model that was deleted; no longer here"}
    return {
        **component,
        "hashes": [{"alg": "SHA-256", "content": used.sha256}],
        "properties": _properties({"rows": used.rows, "bytes": used.bytes}),
    }


def _file(file: Written) -> dict[str, Any]:
    properties: dict[str, object] = {"bytes": file.bytes}
    if file.released is not None and (found := file.released.parity) is not None:
        properties |= {
            "divergence-in-answers": found.in_answers.mean_kl,
            "divergence-in-prompts": found.in_prompts.mean_kl,
            "answers": found.answers,
            "equal-answers": found.equal_answers,
        }
        if found.unmerged.positions:
            properties["divergence-from-unmerged"] = found.unmerged.mean_kl
    return {
        "type": "file",
        "bom-ref": f"file-{file.name}",
        "name": file.name,
        "hashes": [{"alg": "SHA-256", "content": file.sha256}],
        "properties": _properties(properties),
    }


def _software(name: str, version: str) -> dict[str, Any]:
    return {
        "type": "library",
        "bom-ref": f"software-{name}",
        "name": name,
        "version": version,
    }


def _metrics(known: Provenance) -> list[dict[str, str]]:
    training = known.training
    metrics = {"training loss": training.train_loss, "validation loss": training.validation_loss}
    return [
        {"type": name, "value": str(value)} for name, value in metrics.items() if value is not None
    ]


def _properties(values: dict[str, object]) -> list[dict[str, str]]:
    return [{"name": f"appliance:{name}", "value": str(value)} for name, value in values.items()]
