"""What of a base model and a file of rows fits on a device, and the plan that a job would get.

Reads the catalogue; starts nothing, stores nothing, and does not know how long anything takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from appliance.errors import InvalidInput
from appliance.hardware import stored_base
from appliance.hardware.device import Disk
from appliance.hardware.fit import choices, gguf_size, needs
from appliance.hardware.fit.choices import Room, ServedFile, ServingChoice, TrainingChoice
from appliance.hardware.fit.machine import Machine
from appliance.hardware.fit.needs import Data
from appliance.hardware.fit.planner import Setup
from appliance.hardware.fit.shapes import ModelShape
from appliance.hardware.lease import Holding, serving_bytes
from appliance.hardware.profiles import HardwareProfile
from appliance.jobs import create, fitting, plan
from appliance.jobs.request import FineTuningRequest
from appliance.records import BaseModel, Plan, Quantization, ReleaseFile, StoredFile
from appliance.store.store import Store


class Needs(msgspec.Struct, frozen=True, kw_only=True):
    """What has to have room, and whether it has."""

    training: tuple[TrainingChoice, ...]
    serving: tuple[ServingChoice, ...]
    release_memory: Room
    release_disk: Room


class Estimate(msgspec.Struct, frozen=True, kw_only=True):
    """`needs` is None for a model whose family's memory cannot be told.

    `plan` is a job's, and `memory` what is said of its memory; `refused` why there would be no such job now.
    No row has more tokens than `longest_row_tokens`, as its bytes tell (None if nobody looked); none may have
    more than `max_length`.
    """

    base: BaseModel
    file: StoredFile
    longest_row_tokens: int | None
    max_length: int
    needs: Needs | None
    plan: Plan
    memory: str | None
    refused: str | None


def make(
    store: Store,
    profile: HardwareProfile,
    machine: Machine,
    disk: Disk,
    held: Sequence[Holding],
    request: FineTuningRequest,
) -> Estimate:
    """Raises NotFound for an unknown model, InvalidInput for an unknown file, one that holds no training
    rows, or too few of them."""
    model = store.aliases.model_of(request.model)
    base, initial_adapter = create.starting_point(store, model)
    file = create.training_file(store, request.training_file, "dataset")
    asked = plan.make(
        request, profile, base=base, initial_adapter=initial_adapter, rows=file.rows or 0
    )
    facts = stored_base.read(store.directory / base.directory / create.HF)
    data = fitting.data_facts([file], asked.hyperparameters.max_length)
    files = store.catalog.get(model).files
    # An engine cuts it to what the model was trained with.
    n_ctx = min(profile.n_ctx, base.context_length)
    chosen, memory, refused = asked, None, None
    try:
        chosen, memory = fitting.fit(
            asked,
            request.appliance.advanced,
            facts,
            data,
            machine,
            serving_bytes(held),
            n_ctx,
        )
    except InvalidInput as exc:
        # What else would fit is what the table is for.
        refused = str(exc)
    return Estimate(
        base=base,
        file=file,
        longest_row_tokens=fitting.longest_row_tokens([file]),
        max_length=asked.hyperparameters.max_length,
        needs=(
            None
            if facts is None
            else _needs(facts, asked, data, files, profile, n_ctx, machine, disk)
        ),
        plan=chosen,
        memory=memory,
        refused=refused,
    )


def _needs(
    facts: ModelShape,
    chosen: Plan,
    data: Data,
    files: Sequence[ReleaseFile],
    profile: HardwareProfile,
    n_ctx: int,
    machine: Machine,
    disk: Disk,
) -> Needs:
    setup = Setup(
        shape=facts, technique=chosen.technique, hyperparameters=chosen.hyperparameters, data=data
    )
    served = _served(facts, files, profile.quantizations)
    lengths = choices.row_lengths(data.longest_row_tokens, chosen.hyperparameters.max_length)
    return Needs(
        training=tuple(choices.training_choices(setup, lengths, machine)),
        # Engines hold keys and values in 16 bits, whatever the profile says.
        serving=tuple(choices.serving_choices(facts, served, n_ctx, "f16", machine)),
        release_memory=choices.room(needs.release_bytes(facts), machine.host_bytes),
        release_disk=choices.room(
            needs.disk_bytes(
                facts,
                [each.value for each in chosen.quantizations],
                chosen.hyperparameters.r,
            ),
            disk.free_bytes,
        ),
    )


def _served(
    facts: ModelShape, files: Sequence[ReleaseFile], wanted: Sequence[Quantization]
) -> Iterator[ServedFile]:
    """The model's files, and those that a release of it would have besides."""
    for file in files:
        yield ServedFile(
            quantization=file.quantization.value, file_bytes=file.bytes, predicted=False
        )
    for quantization in sorted(set(wanted) - {file.quantization for file in files}):
        size = gguf_size.file_bytes(facts, quantization.value)
        yield ServedFile(quantization=quantization.value, file_bytes=size, predicted=True)
