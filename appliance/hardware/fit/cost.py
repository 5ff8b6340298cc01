"""What a training costs in electricity, beside the same training at somebody's API. Pure arithmetic.

Prices are the operator's, in whatever currency; none is known here. APIs that charge for training count the
tokens of every epoch, and so does this. The operator's work, the release and serving are not in it.
"""

from __future__ import annotations

import math
from typing import Annotated

import msgspec
from msgspec import Meta

MILLION = 1_000_000
_SECONDS_PER_HOUR = 3600
_WATTS_PER_KILOWATT = 1000
# Up to what is surely a mistake.
Price = Annotated[float, Meta(ge=0, le=1e12)]


class Prices(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the operator enters, all in one currency; `watts` is what the box takes in while it trains."""

    electricity_price_per_kwh: Price | None = None
    api_training_price_per_million: Price | None = None
    hardware_price: Price | None = None
    watts: Price | None = None


class Run(msgspec.Struct, frozen=True, kw_only=True):
    """A training: tokens of all epochs, how long it takes, and the power meanwhile, if that is known."""

    tokens: int
    seconds: float
    watts: float | None


class Cost(msgspec.Struct, frozen=True, kw_only=True):
    """None is what cannot be told: a price or the power is missing.

    `saved_per_run` is negative where the API is cheaper. `runs_until_paid` is after how many runs the
    hardware's price has been saved; None also where nothing is saved.
    """

    kwh_per_run: float | None
    kwh_per_million_tokens: float | None
    electricity_per_run: float | None
    electricity_per_million_tokens: float | None
    api_per_run: float | None
    saved_per_run: float | None
    runs_until_paid: int | None


def cost(run: Run, prices: Prices) -> Cost:
    """Energy and money of one run."""
    kwh = None if run.watts is None else kilowatt_hours(run.watts, run.seconds)
    electricity = _product(kwh, prices.electricity_price_per_kwh)
    api = _product(run.tokens / MILLION, prices.api_training_price_per_million)
    saved = None if api is None or electricity is None else api - electricity
    return Cost(
        kwh_per_run=kwh,
        kwh_per_million_tokens=_per_million(kwh, run.tokens),
        electricity_per_run=electricity,
        electricity_per_million_tokens=_per_million(electricity, run.tokens),
        api_per_run=api,
        saved_per_run=saved,
        runs_until_paid=_runs_until_paid(prices.hardware_price, saved),
    )


def kilowatt_hours(watts: float, seconds: float) -> float:
    """Energy of a constant power."""
    return watts * seconds / _SECONDS_PER_HOUR / _WATTS_PER_KILOWATT


def _product(amount: float | None, price: float | None) -> float | None:
    return None if amount is None or price is None else amount * price


def _per_million(value: float | None, tokens: int) -> float | None:
    return None if value is None or tokens == 0 else value / tokens * MILLION


def _runs_until_paid(hardware_price: float | None, saved_per_run: float | None) -> int | None:
    if hardware_price is None or saved_per_run is None or saved_per_run <= 0:
        return None
    runs = hardware_price / saved_per_run
    return math.ceil(runs) if math.isfinite(runs) else None
