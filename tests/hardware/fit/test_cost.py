"""Energy and money of a run, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from appliance.hardware.fit.cost import Prices, Run, cost, kilowatt_hours

# 100 W for three hours; two million tokens.
RUN = Run(tokens=2_000_000, seconds=3 * 3600, watts=100.0)
NO_POWER = Run(tokens=2_000_000, seconds=3 * 3600, watts=None)


def test_energy_is_power_times_time():
    assert kilowatt_hours(1000, 3600) == 1
    assert kilowatt_hours(250, 7200) == 0.5


def test_everything_follows_from_all_prices():
    found = cost(
        RUN,
        Prices(
            electricity_price_per_kwh=0.5, api_training_price_per_million=3, hardware_price=1000
        ),
    )
    assert found.kwh_per_run == pytest.approx(0.3)
    assert found.kwh_per_million_tokens == pytest.approx(0.15)
    assert found.electricity_per_run == pytest.approx(0.15)
    assert found.electricity_per_million_tokens == pytest.approx(0.075)
    assert found.api_per_run == pytest.approx(6)
    assert found.saved_per_run == pytest.approx(5.85)
    # 170 runs save 994.50, 171 save 1000.35.
    assert found.runs_until_paid == 171


def test_hardware_is_paid_by_the_run_that_reaches_its_price():
    prices = Prices(
        electricity_price_per_kwh=0, api_training_price_per_million=5, hardware_price=1000
    )
    assert cost(RUN, prices).runs_until_paid == 100


@pytest.mark.parametrize(
    ("run", "prices", "told"),
    [
        (RUN, {}, {"kwh_per_run", "kwh_per_million_tokens"}),
        (NO_POWER, {"electricity_price_per_kwh": 1, "hardware_price": 1}, set()),
        (NO_POWER, {"api_training_price_per_million": 1, "hardware_price": 1}, {"api_per_run"}),
        (
            RUN,
            {"api_training_price_per_million": 1, "hardware_price": 1},
            {"kwh_per_run", "kwh_per_million_tokens", "api_per_run"},
        ),
    ],
)
def test_what_lacks_a_price_or_a_power_is_not_told(run, prices, told):
    found = cost(run, Prices(**prices))
    names = {name for name in found.__struct_fields__ if getattr(found, name) is not None}
    assert names == told


def test_api_that_costs_less_never_pays_for_the_hardware():
    for api in (0.0, 0.075):
        found = cost(
            RUN,
            Prices(
                electricity_price_per_kwh=0.5,
                api_training_price_per_million=api,
                hardware_price=1000,
            ),
        )
        assert found.saved_per_run <= 0
        assert found.runs_until_paid is None


def test_saving_next_to_nothing_pays_for_no_hardware():
    prices = Prices(
        electricity_price_per_kwh=0.0, api_training_price_per_million=1e-300, hardware_price=1e12
    )
    assert cost(Run(tokens=1000, seconds=10, watts=100), prices).runs_until_paid is None
