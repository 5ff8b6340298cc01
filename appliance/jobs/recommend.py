"""Which open base models to bring in for a device: those that a job on it would be accepted with.

The judge is the one that new jobs meet. Starts nothing, fetches nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec

from appliance.errors import InvalidInput
from appliance.hardware.catalogue import CataloguedModel
from appliance.hardware.fit import gguf_size
from appliance.hardware.fit.choices import TECHNIQUES
from appliance.hardware.fit.machine import Machine
from appliance.hardware.fit.needs import Data
from appliance.hardware.profiles import HardwareProfile
from appliance.jobs import fitting, plan
from appliance.jobs.request import ApplianceOptions, FineTuningRequest
from appliance.records import BaseModel, Plan, Quantization, Technique

# Most conversations are shorter; a model that cannot even be given these is of little use.
ROW_TOKENS = 512


class Recommendation(msgspec.Struct, frozen=True, kw_only=True):
    """A model that can be trained, released and served. `file_bytes` is the predicted size as `quantization`.

    `training_bytes` are those of the first of `techniques`. `suits` is False for what fits and is slow.
    """

    name: str
    repository: str
    licence: str
    languages: str
    chat: bool
    parameters: int
    quantization: Quantization
    file_bytes: int
    techniques: tuple[Technique, ...]
    training_bytes: int | None
    suits: bool
    reason: str


def recommend(
    profile: HardwareProfile, machine: Machine, models: Mapping[str, CataloguedModel]
) -> list[Recommendation]:
    """What of `models` fits the device: what suits, then what is slow, each with the largest first."""
    found = [
        _recommendation(name, model, accepted, profile)
        for name, model in models.items()
        if (accepted := dict(_accepted(name, model, profile, machine)))
    ]
    return sorted(found, key=lambda each: (not each.suits, -each.parameters))


def _accepted(
    name: str, model: CataloguedModel, profile: HardwareProfile, machine: Machine
) -> Iterator[tuple[Technique, Plan]]:
    """By technique, the profile's own first, the plan of a job with rows of ROW_TOKENS that would be accepted
    on the idle device."""
    for technique in sorted(TECHNIQUES, key=lambda each: each != profile.technique):
        sizes = profile.base_sizes.get(technique)
        if sizes is None or _billions(model) > sizes.max_billions:
            continue
        options = ApplianceOptions(technique=technique)
        request = FineTuningRequest(model=name, training_file="", appliance=options)
        asked = plan.make(
            request, profile, base=_base(name, model, profile), initial_adapter=None, rows=1000
        )
        longest = min(ROW_TOKENS, asked.hyperparameters.max_length)
        data = Data(longest_row_tokens=longest, bytes=0)
        advanced = request.appliance.advanced
        try:
            fitted, _ = fitting.fit(asked, advanced, model.shape, data, machine, 0, profile.n_ctx)
        except InvalidInput:
            continue
        yield technique, fitted


def _base(name: str, model: CataloguedModel, profile: HardwareProfile) -> BaseModel:
    """The model as it would be once imported, as far as a plan asks."""
    return BaseModel(
        name=name,
        created_at=0,
        architecture="",
        parameters=model.shape.parameters,
        context_length=profile.n_ctx,
        licence=model.licence,
        source=model.repository,
        sha256="",
        directory="",
        files=(),
    )


def _recommendation(
    name: str,
    model: CataloguedModel,
    accepted: Mapping[Technique, Plan],
    profile: HardwareProfile,
) -> Recommendation:
    quantization = profile.quantizations[0]
    technique, first = next(iter(accepted.items()))
    suiting_billions = profile.base_sizes[technique].default_billions
    suits = _billions(model) <= suiting_billions
    return Recommendation(
        name=name,
        repository=model.repository,
        licence=model.licence,
        languages=model.languages,
        chat=model.chat,
        parameters=model.shape.parameters,
        quantization=quantization,
        file_bytes=gguf_size.file_bytes(model.shape, quantization),
        techniques=tuple(accepted),
        training_bytes=first.training_bytes,
        suits=suits,
        reason=(
            f"{_billions(model):.2g} billion parameters, {'within' if suits else 'more than'} the "
            f"{suiting_billions:g} that suit {technique} here{'' if suits else ': slow'}"
        ),
    )


def _billions(model: CataloguedModel) -> float:
    return model.shape.parameters / 1e9
