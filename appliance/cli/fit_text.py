"""What `appliance fit` found, as text for a terminal of 80 columns. Computes nothing but units."""

from __future__ import annotations

import dataclasses
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from appliance.cli import output
from appliance.hardware.fit.choices import Room
from appliance.hardware.fit.cost import Cost, Prices, Run
from appliance.hardware.fit.machine import GIB, Machine
from appliance.hardware.lease import Holding

if TYPE_CHECKING:
    from appliance.jobs.estimate import Estimate, Needs
    from appliance.jobs.warm_up import WarmUp

Row = tuple[str, ...]
COLUMNS = 80
# Processes: half of the time somebody else wanted a CPU.
BUSY_LOAD = 0.5


@dataclasses.dataclass(frozen=True, kw_only=True)
class Findings:
    """All of it. `warm_up`, `run` and `cost` are None where `no_warm_up` says why."""

    model: str
    profile: str
    machine: Machine
    held: Sequence[Holding]
    estimate: Estimate
    warm_up: WarmUp | None
    no_warm_up: str | None
    prices: Prices
    run: Run | None
    cost: Cost | None


def text(found: Findings) -> str:
    """Everything, a section after another."""
    estimate = found.estimate
    rows = f"{found.model} on {estimate.file.filename}: {estimate.file.rows} rows"
    sections = [f"{rows}, profile {found.profile}\n{_device(found)}"]
    if estimate.needs is None:
        sections.append("What this model's family takes of memory and disk cannot be told.")
    else:
        sections += _fits(estimate, estimate.needs)
    sections.append(_job(estimate))
    sections.append(_section("Time and cost of such a job's training", ("", ""), _course(found)))
    return "\n\n".join(sections)


def _device(found: Findings) -> str:
    held = [
        f"held now: {_gib(each.bytes)} by {each.holder} ({each.purpose})" for each in found.held
    ]
    return "\n".join([f"{_gib(found.machine.device_bytes)} to train and serve in", *held])


def _fits(estimate: Estimate, needs: Needs) -> Iterator[str]:
    longest, limit = estimate.longest_row_tokens, estimate.max_length
    known = longest is not None and longest <= limit
    marked, mark = (longest, "the data") if known else (limit, "the limit")
    yield _section(
        "Training, in the micro-batches that a job would get",
        ("technique", "row tokens", "micro-batch", "memory", "margin"),
        (
            (
                each.technique,
                f"{each.row_tokens}{f' ({mark})' * (each.row_tokens == marked)}",
                str(each.per_device_train_batch_size or "none fits"),
                _gib(each.room.needed_bytes),
                _margin(each.room),
            )
            for each in needs.training
        ),
    )
    if longest is not None and not known:
        yield _wrapped(
            f"A job refuses rows of more than {limit} tokens. The longest row here may have up to {longest}, "
            "one for each byte; the training child counts them."
        )
    yield _section(
        f"Serving, with a context of {needs.serving[0].n_ctx} tokens",
        ("file", "size", "cache", "memory", "margin"),
        (
            (
                each.file.quantization + " (predicted)" * each.file.predicted,
                _gib(each.file.file_bytes),
                _gib(each.cache_bytes),
                _gib(each.room.needed_bytes),
                _margin(each.room),
            )
            for each in needs.serving
        ),
    )
    yield _section(
        "Release",
        ("of", "needed", "margin"),
        (
            (name, _gib(room.needed_bytes), _margin(room))
            for name, room in (
                ("the host's memory", needs.release_memory),
                ("free disk", needs.release_disk),
            )
        ),
    )


def _job(estimate: Estimate) -> str:
    if estimate.refused is not None:
        return f"A job with default options is refused at the moment:\n{_wrapped(estimate.refused)}"
    plan = estimate.plan
    chosen = plan.hyperparameters
    epochs = f"{chosen.num_train_epochs} epoch{'s' * (chosen.num_train_epochs > 1)}"
    return (
        f"A job with default options: {plan.technique}, {epochs}, steps of "
        f"{chosen.gradient_accumulation_steps} x {chosen.per_device_train_batch_size} rows\n"
        f"{_wrapped(estimate.memory or '')}"
    )


def _course(found: Findings) -> Iterator[Row]:
    if found.warm_up is None or found.run is None or found.cost is None:
        lines = textwrap.wrap(f"not told: {found.no_warm_up}", COLUMNS - 8)
        yield from zip(("time", *[""] * len(lines)), lines, strict=False)
        return
    pace, epochs = found.warm_up.pace, found.estimate.plan.hyperparameters.num_train_epochs
    yield (
        "tokens",
        f"{found.run.tokens:,} ({epochs} x {found.run.tokens // epochs:,}), counted by the child",
    )
    steps = f"{pace.warm_steps} warm step{'s' * (pace.warm_steps > 1)}"
    yield "speed", f"{pace.tokens_per_second:,.0f} tokens/s over {steps} here"
    for each in found.warm_up.beside:
        yield "", f"measured while {each.holder} ({each.purpose}) ran, too"
    if found.warm_up.load_average >= BUSY_LOAD:
        yield (
            "",
            f"the box had other work (load {found.warm_up.load_average:.1f}): slower than alone",
        )
    yield "time", f"{_duration(found.run.seconds)}, the release after it not included"
    yield from _energy(found.warm_up, found.run, found.cost, found.prices)
    yield from _money(found.cost, found.prices)


def _energy(warm_up: WarmUp, run: Run, cost: Cost, prices: Prices) -> Iterator[Row]:
    if run.watts is None or cost.kwh_per_run is None or cost.kwh_per_million_tokens is None:
        yield "energy", "not told: the device tells no power, and there is no --watts"
        return
    told = "" if warm_up.watts is None else f"; the accelerator told {warm_up.watts:.1f} W"
    source = "told by the accelerator" if prices.watts is None else f"as entered{told}"
    yield "power", f"{run.watts:.1f} W, {source}"
    yield (
        "energy",
        f"{_number(cost.kwh_per_run)} kWh, {_number(cost.kwh_per_million_tokens)} a million tokens",
    )


def _money(cost: Cost, prices: Prices) -> Iterator[Row]:
    if cost.electricity_per_run is not None and cost.electricity_per_million_tokens is not None:
        per_million = _number(cost.electricity_per_million_tokens)
        yield (
            "electricity",
            f"costs {_number(cost.electricity_per_run)}, {per_million} a million tokens",
        )
    elif cost.api_per_run is not None:
        yield "saved", "not told: it takes --electricity-price-per-kwh and a power"
    if cost.api_per_run is not None:
        yield "at the API", f"costs {_number(cost.api_per_run)}"
    if cost.saved_per_run is not None:
        yield "saved", f"{_number(cost.saved_per_run)} a run"
    if cost.runs_until_paid is not None:
        yield "hardware", f"is paid after {cost.runs_until_paid:,} such runs"
    elif prices.hardware_price is not None and cost.saved_per_run is not None:
        yield "hardware", "is never paid by such runs: the API costs no more"
    elif prices.hardware_price is not None:
        yield "hardware", "not told: it takes all other prices and a power"


def _section(title: str, columns: Row, rows: Iterator[Row] | Sequence[Row]) -> str:
    lines = output.listing(columns, rows).splitlines()
    return "\n".join([title, *(f"  {line}" for line in lines if line)])


def _wrapped(words: str) -> str:
    return textwrap.fill(words, COLUMNS)


def _margin(room: Room) -> str:
    if not room.fits:
        return f"{_gib(-room.margin_bytes)} missing"
    percent = "" if room.margin_percent is None else f" ({room.margin_percent:.0f} %)"
    return f"{_gib(room.margin_bytes)}{percent}"


def _gib(size_bytes: int) -> str:
    return f"{size_bytes / GIB:.2f} GiB"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def _number(value: float) -> str:
    """Two decimals, or for less than one three digits that count."""
    return f"{value:,.2f}" if abs(value) >= 1 else f"{value:.3g}"
