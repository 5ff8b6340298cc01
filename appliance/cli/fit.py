"""`appliance fit`: what of a base model and a dataset fits here, how long it takes, and what it costs.

Works on the state directory; the daemon may be running or not. No job, file or model is added or changed.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from appliance import fields
from appliance.child_records import Progress
from appliance.cli import fit_text, output
from appliance.cli.fit_text import Findings
from appliance.cli.follow import LiveView, live_view
from appliance.cli.options import JsonPath, with_settings
from appliance.errors import Busy, ChildFailed, InvalidInput
from appliance.hardware import selection
from appliance.hardware.fit import duration
from appliance.hardware.fit.cost import Prices, Run, cost
from appliance.hardware.lease import DIRECTORY, Ledger
from appliance.settings import Settings

if TYPE_CHECKING:
    from appliance.jobs.estimate import Estimate
    from appliance.jobs.warm_up import WarmUp
    from appliance.store.store import Store

# One is cold; of the others each has other rows.
WARM_UP_STEPS = 6
# The child reports every step of so many.
MOST_STEPS = 200


@with_settings(("state_dir", "profile", "profile_dir", "profile_override_file", "threads"))
def fit(
    settings: Settings,
    base: Annotated[str, typer.Option(help="Base model, or a fine-tuned one to go on from.")],
    dataset: Annotated[str, typer.Option(help="Id that `files upload` printed.")],
    warm_up: Annotated[
        bool, typer.Option(help="Measure a few training steps on this box, for the time it takes.")
    ] = True,
    warm_up_steps: Annotated[
        int, typer.Option(help="How many, the cold first included.", min=2, max=MOST_STEPS)
    ] = WARM_UP_STEPS,
    price_file: Annotated[
        Path | None,
        typer.Option(help="TOML file with the values below, dashes as underscores; flags win."),
    ] = None,
    electricity_price_per_kwh: Annotated[
        float | None, typer.Option(help="In your currency, as all prices.")
    ] = None,
    api_training_price_per_million: Annotated[
        float | None, typer.Option(help="What an API takes for a million trained tokens.")
    ] = None,
    hardware_price: Annotated[
        float | None, typer.Option(help="Of this box, for the number of runs that pay for it.")
    ] = None,
    watts: Annotated[
        float | None, typer.Option(help="Power while it trains; else what the device tells.")
    ] = None,
    json_path: JsonPath = None,
) -> None:
    """Show what fits on this device, how long a training takes here, and what it costs."""
    given = {
        "electricity_price_per_kwh": electricity_price_per_kwh,
        "api_training_price_per_million": api_training_price_per_million,
        "hardware_price": hardware_price,
        "watts": watts,
    }
    prices = _prices(price_file, given)
    # The database and its libraries: too slow for every other command to wait for.
    from appliance.store.store import Store

    if not settings.state_dir.is_dir():
        raise InvalidInput(
            "no_state",
            f"{settings.state_dir} should be the state directory of an appliance; there is none",
            next_step="set --state-dir or APPLIANCE_STATE_DIR",
        )
    store = Store(settings.state_dir)
    try:
        steps = warm_up_steps if warm_up else 0
        found, failed = _found(settings, store, base, dataset, steps, prices)
    finally:
        store.close()
    output.show(found, json_path, fit_text.text(found))
    if failed:
        raise typer.Exit(1)


def _found(
    settings: Settings, store: Store, base: str, dataset: str, steps: int, prices: Prices
) -> tuple[Findings, bool]:
    """The result, and whether the training child failed."""
    from appliance.jobs import estimate
    from appliance.jobs.request import FineTuningRequest

    selected = selection.select(settings)
    selection.show_only_the_gpu(selected.device)
    machine = selected.machine
    ledger = Ledger(settings.state_dir / DIRECTORY, machine.device_bytes)
    held = ledger.holdings()
    request = FineTuningRequest(model=base, training_file=dataset)
    found = estimate.make(store, selected.profile, machine, selected.device.disk, held, request)
    measured, no_warm_up, failed = _measured(settings, store, ledger, found, steps)
    run = None if measured is None else _run(measured, prices)
    findings = Findings(
        model=base,
        profile=selected.profile.name,
        machine=machine,
        held=held,
        estimate=found,
        warm_up=measured,
        no_warm_up=no_warm_up,
        prices=prices,
        run=run,
        cost=None if run is None else cost(run, prices),
    )
    return findings, failed


def _measured(
    settings: Settings, store: Store, ledger: Ledger, found: Estimate, steps: int
) -> tuple[WarmUp | None, str | None, bool]:
    """What a warm-up found, or why there is none, and whether its child failed."""
    from appliance.daemon import PROGRAMS
    from appliance.hardware.sensors import Sensors
    from appliance.jobs import warm_up

    if not steps:
        return None, "--no-warm-up was given", False
    if found.refused is not None:
        return None, "there would be no such job", False
    try:
        with live_view() as view:
            measured = asyncio.run(
                warm_up.measure(
                    store,
                    settings,
                    PROGRAMS,
                    ledger,
                    Sensors(),
                    found,
                    steps,
                    lambda lines: _show(view, lines),
                )
            )
            view.finish()
    except (Busy, ChildFailed) as exc:
        return None, str(exc), isinstance(exc, ChildFailed)
    return measured, None, False


def _run(measured: WarmUp, prices: Prices) -> Run:
    return Run(
        tokens=measured.planned_tokens,
        seconds=duration.training_seconds(
            measured.pace, measured.planned_tokens, measured.planned_validations
        ),
        # What somebody has entered is meant: a meter at the socket sees more than the accelerator.
        watts=measured.watts if prices.watts is None else prices.watts,
    )


def _show(view: LiveView, lines: list[Progress]) -> None:
    for line in lines:
        if line.data and "train_loss" in line.data:
            view.advance("warm-up", line.data["step"], line.data["total_steps"])
        else:
            view.say(line.message)


def _prices(path: Path | None, flags: dict[str, float | None]) -> Prices:
    """Those of the file, replaced by flags; raises InvalidInput that names every fault at once."""
    values = {} if path is None else _read(path)
    values |= {name: value for name, value in flags.items() if value is not None}
    accepted, faults = fields.convert(values, Prices, what="price")
    if faults:
        raise InvalidInput(
            "invalid_prices",
            "prices should be numbers from 0 up, but: " + "; ".join(faults),
            next_step="see `appliance fit --help`",
        )
    return Prices(**accepted)


def _read(path: Path) -> dict[str, Any]:
    try:
        return fields.read_toml(path)
    except (OSError, ValueError) as exc:
        raise InvalidInput(
            "invalid_prices",
            f"{path} should be a TOML file, but: {exc}",
            next_step="write lines such as: electricity_price_per_kwh = 0.3",
        ) from exc
