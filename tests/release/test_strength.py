"""How much of one change is found in another, and when nothing can be told."""

from __future__ import annotations

from typing import Any

import pytest

pytestmark = pytest.mark.llama


def changes(factor: float, *, places: int = 50, noise: float = 0.0, size: float = 0.5) -> Any:
    """What a second model changes that makes `factor` of what the first does, and `noise` of its own."""
    import numpy as np

    from appliance.release import strength
    from appliance.release.likeness import log_softmax, most_likely

    chance = np.random.default_rng(0)
    before = log_softmax(chance.normal(size=(places, 40)))
    change = size * chance.normal(size=(places, 40))
    first = log_softmax(before + change)
    second = log_softmax(before + factor * change + noise * chance.normal(size=(places, 40)))
    likely = [most_likely(row, 10) for row in first]
    alone = np.take_along_axis(before, np.array([[i for i, _ in each] for each in likely]), -1)
    return strength.change(likely, alone, second)


@pytest.mark.parametrize("factor", [0.5, 1.0, 2.0, -1.0])
def test_it_is_how_much_of_a_change_is_made(factor: float) -> None:
    from appliance.release import strength

    found = strength.measure([range(50)], [changes(factor)])
    assert found.slope == pytest.approx(factor)
    assert found.error == pytest.approx(0, abs=1e-9)
    assert abs(found.correlation) == pytest.approx(1)
    assert 30 < found.places < 50
    assert strength.tells(found) == (factor > 0)


def test_where_nothing_changes_nothing_is_told() -> None:
    import numpy as np

    from appliance.release import strength

    found = strength.measure([range(50)], [changes(0.0)])
    assert found.slope == pytest.approx(0)
    assert not strength.tells(found)
    nothing = strength.measure([range(50)], [np.zeros((50, 3))])
    assert (nothing.slope, nothing.correlation, nothing.places) == (1.0, 0.0, 0.0)


def test_its_error_is_what_it_misses_the_truth_by() -> None:
    import numpy as np

    from appliance.release import strength

    # In the same noise, from 40 times as many places, the slope is known well.
    parts = changes(1.0, places=2000, noise=0.3).reshape(40, 50, 3)
    found = [strength.measure([range(50)], [part]) for part in parts]
    missed = np.std([each.slope for each in found])
    assert np.mean([each.error for each in found]) == pytest.approx(missed, rel=0.25)
    whole = strength.measure([range(2000)], [parts.reshape(-1, 3)])
    assert whole.error == pytest.approx(missed / 40**0.5, rel=0.25)


def test_the_same_prompt_again_tells_nothing_new() -> None:
    from appliance.release import strength

    once = changes(1.0, places=10, noise=0.3)
    found = strength.measure([range(30), range(30), range(30)], [once, once, once])
    assert found == strength.measure([range(30)], [once])
    assert found.places <= 10
    assert not strength.tells(found)
    # Another beginning makes them other places.
    other = strength.measure([range(30), [7, *range(1, 30)]], [once, once])
    assert other.places == pytest.approx(2 * found.places)
    # Two that part behind their fifth place have those five in common.
    parted = strength.measure([range(30), [*range(25), *range(70, 75)]], [once, once])
    assert found.places < parted.places < other.places


def test_one_place_with_most_of_the_change_makes_few_of_many() -> None:
    from appliance.release import strength

    many = changes(1.0, places=60, noise=0.3)
    assert strength.tells(strength.measure([range(60)], [many]))
    many[7] *= 100
    found = strength.measure([range(60)], [many])
    assert found.places < 5
    assert not strength.tells(found)
