"""Power over time, with a clock of the test's own."""

from __future__ import annotations

import pytest

from appliance.hardware.energy import LONGEST_GAP_SECONDS, Meter, Used, power
from appliance.hardware.telemetry import Reading


def used(*moments, before=Used()):  # noqa: B008  frozen
    meter = Meter(before)
    for at_seconds, watts in moments:
        meter.add(at_seconds, watts)
    return meter.used


@pytest.mark.parametrize(
    ("moments", "watt_hours", "known", "unknown"),
    [
        ([], 0, 0, 0),
        ([(100, 360)], 0, 0, 0),
        ([(100, 360), (110, 360)], 1, 10, 0),
        ([(0, 0), (10, 720)], 1, 10, 0),
        ([(0, 360), (10, 360), (30, 720)], 4, 30, 0),
        ([(0, 360), (10, 360), (20, None), (25, 720), (30, 720)], 2, 15, 15),
        ([(0, None), (10, None)], 0, 0, 10),
        ([(0, None), (10, 360), (20, 360)], 1, 10, 10),
        ([(0, 360), (LONGEST_GAP_SECONDS, 360)], 3, LONGEST_GAP_SECONDS, 0),
        ([(0, 360), (LONGEST_GAP_SECONDS + 1, 360)], 0, 0, LONGEST_GAP_SECONDS + 1),
        ([(0, 360), (600, 360), (610, 360)], 1, 10, 600),
    ],
)
def test_energy_is_the_area_under_what_is_known(moments, watt_hours, known, unknown):
    found = used(*moments)
    assert found.watt_hours == pytest.approx(watt_hours)
    assert (found.known_seconds, found.unknown_seconds) == (known, unknown)


def test_later_use_is_added_and_the_time_between_is_no_use():
    before = Used(watt_hours=5.0, known_seconds=100.0, unknown_seconds=7.0)
    found = used((10_000, 360), (10_010, 360), (10_020, None), before=before)
    assert found.watt_hours == pytest.approx(6)
    assert (found.known_seconds, found.unknown_seconds) == (110, 17)


def reading(device, watts):
    return Reading(device=device, name="a device", power_watts=watts)


@pytest.mark.parametrize(
    ("readings", "watts"),
    [
        ([], None),
        ([("gpu0", 70.5)], 70.5),
        ([("gpu0", 0.0)], 0.0),
        ([("gpu0", 70.5), ("gpu1", 30.0)], 100.5),
        ([("gpu0", 70.5), ("gpu1", None)], None),
        ([("gpu0", None)], None),
        ([("board", 15.0)], 15.0),
        ([("gpu0", 6.0), ("board", 15.0)], 15.0),
        ([("gpu0", None), ("board", 15.0)], 15.0),
        ([("gpu0", 6.0), ("board", None)], None),
    ],
)
def test_power_is_the_boards_or_that_of_all_gpus(readings, watts):
    assert power([reading(*each) for each in readings]) == watts
