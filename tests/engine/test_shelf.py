"""What is on the shelf is found again, is there once, and goes when it was unused for longest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from appliance.engine.shelf import Shelf, Shelved

pytestmark = pytest.mark.llama


def shelved(tokens: list[int], adapter: str | None = None) -> Shelved:
    import numpy as np

    from appliance.engine.shelf import Shelved

    return Shelved(tokens, adapter, np.zeros(1, np.uint8))


def put(shelf: Shelf, each: Shelved) -> None:
    shelf.make_room(each.tokens, each.adapter)
    shelf.put(each)


@pytest.fixture
def shelf() -> Shelf:
    from appliance.engine.shelf import Shelf

    return Shelf(most_tokens=10)


def test_longest_beginning_is_found_and_that_of_another_adapter_is_not(shelf: Shelf) -> None:
    two, other = shelved([1, 2, 3, 4]), shelved([1, 2, 3], "a.gguf")
    for each in (two, other):
        put(shelf, each)
    assert shelf.longest([1, 2, 3], None) == (two, 3)
    assert shelf.longest([1, 2, 3, 9], "a.gguf") == (other, 3)
    assert shelf.longest([1, 2], "b.gguf") == (None, 0)
    assert shelf.longest([2, 2], None) == (None, 0)


def test_what_goes_on_takes_the_place_of_what_it_goes_on_from(shelf: Shelf) -> None:
    put(shelf, shelved([1, 2]))
    put(shelf, shelved([1, 2], "a.gguf"))
    put(shelf, shelved([1, 2, 3]))
    assert shelf.tokens == 5
    assert shelf.covers([1, 2], None)
    assert shelf.covers([1, 2, 3], None)
    assert not shelf.covers([1, 2, 3, 4], None)
    assert not shelf.covers([1, 2, 3], "a.gguf")


def test_unused_for_longest_goes_first(shelf: Shelf) -> None:
    first, second = shelved([1] * 4), shelved([2] * 4)
    put(shelf, first)
    put(shelf, second)
    shelf.use(first)
    put(shelf, shelved([3] * 4))
    assert [shelf.longest([n], None)[1] for n in (1, 2, 3)] == [1, 0, 1]
    # To be asked for again is a use, too.
    assert shelf.covers([1, 1], None)
    put(shelf, shelved([4] * 6))
    assert [shelf.longest([n], None)[1] for n in (1, 2, 3, 4)] == [1, 0, 0, 1]
    put(shelf, shelved([5] * 10))
    assert shelf.tokens == 10
