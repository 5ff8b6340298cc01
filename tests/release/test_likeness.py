"""How alike two models' next tokens are."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.records import Likeness

pytestmark = pytest.mark.llama


def test_divergence_is_the_textbooks_with_the_rest_as_one_token() -> None:
    import numpy as np

    from appliance.release import likeness

    p, q = np.array([0.5, 0.2, 0.2, 0.1]), np.array([0.25, 0.25, 0.4, 0.1])
    whole = tuple((i, float(np.log(p[i]))) for i in range(4))
    expected = float((p * np.log(p / q)).sum())
    assert likeness.divergence(whole, np.log(q)) == pytest.approx(expected, abs=1e-6)
    part = float(0.5 * np.log(0.5 / 0.25) + 0.5 * np.log(0.5 / 0.75))
    assert likeness.divergence(whole[:1], np.log(q)) == pytest.approx(part)
    assert likeness.divergence(whole, np.log(p)) == pytest.approx(0, abs=1e-9)


def test_most_likely_tokens_fall_and_are_probabilities() -> None:
    import numpy as np

    from appliance.release import likeness

    logarithms = likeness.log_softmax(np.array([[1.0, 3.0, 2.0, -np.inf]]))
    assert np.exp(logarithms).sum() == pytest.approx(1)
    found = likeness.most_likely(logarithms[0], 2)
    assert [token_id for token_id, _ in found] == [1, 2]
    assert [value for _, value in found] == pytest.approx([-0.40760596, -1.40760596])


@pytest.mark.parametrize(
    ("decided", "agrees", "expected"),
    [
        ([1, 1, 1, 1], [1, 0, 0, 1], 0.5),
        # What is not decided does not count, and where most is not, nothing does.
        ([1, 1, 0, 0], [1, 0, 0, 0], 0.5),
        ([1, 0, 0, 0], [0, 0, 0, 0], 1.0),
    ],
)
def test_only_decided_places_tell_whether_two_models_agree(
    decided: list[int], agrees: list[int], expected: float
) -> None:
    import numpy as np

    from appliance.release import likeness

    found: Any = likeness.Compared(
        kl=np.array([1.0, 2.0, 3.0, 4.0]),
        decided=np.array(decided, bool),
        agrees=np.array(agrees, bool),
    )
    assert likeness.over([found]) == Likeness(positions=4, mean_kl=2.5, top1_agreement=expected)
    halves = [found.part(slice(0, 2)), found.part(slice(2, None))]
    assert likeness.over(halves) == likeness.over([found])


def test_a_place_is_decided_where_the_first_is_e_times_as_likely_as_the_second() -> None:
    import numpy as np

    from appliance.release import likeness

    first = (((0, -0.1), (1, -1.2)), ((0, -0.5), (1, -1.2)))
    found = likeness.compare(first, likeness.log_softmax(np.array([[2.0, 1.0], [1.0, 2.0]])))
    assert found.decided.tolist() == [True, False]
    assert found.agrees.tolist() == [True, False]
