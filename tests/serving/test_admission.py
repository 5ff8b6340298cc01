"""Answers are counted, not requests, and no client keeps the others out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest

from appliance.errors import Busy
from appliance.serving.admission import Admission

FILE = Path("a.gguf")


class Places:
    """Eight of them, for one model."""

    def __init__(self) -> None:
        self.admission = Admission(8)
        self.held: list[contextlib.ExitStack] = []
        self.stack = contextlib.ExitStack()

    def take(self, client: str, answers: int = 1) -> contextlib.ExitStack:
        """Hold places until what is returned is closed."""
        stack = contextlib.ExitStack()
        stack.enter_context(self.admission.place("a", FILE, client, answers))
        # What nobody keeps would be closed.
        self.held.append(stack)
        return stack

    def fill(self, client: str) -> int:
        """Take single places until one is refused; returns how many that were."""
        for taken in range(100):
            try:
                self.take(client)
            except Busy:
                return taken
        raise AssertionError("there should be an end to places")


@pytest.fixture
def places() -> Places:
    return Places()


def test_answers_are_counted_and_not_requests(places: Places) -> None:
    places.take("one", 5)
    with pytest.raises(Busy) as caught:
        places.take("one", 4)
    assert caught.value.code == "rate_limit_exceeded"
    places.take("one", 3)
    with pytest.raises(Busy):
        places.take("one")


def test_place_that_is_left_is_free_again(places: Places) -> None:
    first = places.take("one", 7)
    places.take("one")
    first.close()
    assert places.fill("one") == 7


def test_each_model_has_places_of_its_own(places: Places) -> None:
    places.take("one", 8)
    with places.admission.place("b", Path("b.gguf"), "one", 8):
        pass


def test_one_client_alone_may_take_all(places: Places) -> None:
    assert places.fill("one") == 8


def test_client_that_holds_nothing_gets_in_with_any_request(places: Places) -> None:
    places.take("one", 16)
    places.take("other", 16)
    for client in ("one", "other"):
        with pytest.raises(Busy):
            places.take(client)


def test_client_gets_its_equal_share_though_others_came_first(places: Places) -> None:
    assert places.fill("one") == 8
    assert places.fill("two") == 4
    assert places.fill("three") == 2
    # The first has to come down to its share before it gets more.
    assert places.fill("one") == 0


def test_first_client_gets_no_more_until_it_holds_less_than_its_share(places: Places) -> None:
    held = [places.take("one") for _ in range(8)]
    assert places.fill("two") == 4
    for left in range(7, 3, -1):
        with pytest.raises(Busy):
            places.take("one")
        held.pop().close()
        assert len(held) == left
    with pytest.raises(Busy):
        places.take("one")
    held.pop().close()
    places.take("one")


def test_nothing_is_kept_of_who_has_gone(places: Places) -> None:
    for client in "abc":
        with places.take(client, 3):
            pass
    with pytest.raises(Busy), places.take("a"), places.take("a", 9):
        pass
    assert places.admission._held == {}
