"""Which pairs find their weight among upstream's names."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.errors import ChildFailed

pytestmark = pytest.mark.torch


class Upstream:
    """Drops pictures and a wrapper's name, as the converter's classes do."""

    @classmethod
    def filter_tensors(cls, item: tuple[str, Any]) -> tuple[str, Any] | None:
        name, gen = item
        return None if "vision" in name else (name.replace("language_model.", ""), gen)


def names(**values: float) -> dict[str, Any]:
    """Pairs whose second half is filled with a value; dots in names are written as two underscores."""
    import torch

    from appliance.release import converter
    from appliance.release.adapter import LoraPair

    pairs = {
        name.replace("__", "."): LoraPair(torch.ones(2, 4), torch.full((3, 2), value), 1.0)
        for name, value in values.items()
    }
    return converter._under_upstreams_names(Upstream, pairs)


def test_names_are_upstreams() -> None:
    assert list(names(language_model__q=1.0, k=1.0)) == ["q", "k"]


def test_what_no_gguf_has_is_left_out_if_it_was_never_trained() -> None:
    assert list(names(vision__q=0.0, q=1.0)) == ["q"]
    with pytest.raises(ChildFailed, match=r"vision\.q should be a weight") as refused:
        names(vision__q=0.1, q=1.0)
    assert refused.value.code == "release_check_failed"


def test_two_pairs_for_one_weight_are_refused() -> None:
    with pytest.raises(ChildFailed, match="has none of it"):
        names(language_model__q=1.0, q=1.0)


@pytest.mark.llama
@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 2), (8, 2)), ((8, 1), (8,)), ((8, 1, 1), (8,)), ((1, 8), (1, 8)), ((1,), ()), ((), ())],
)
def test_ones_at_the_end_of_a_shape_say_nothing(
    shape: tuple[int, ...], expected: tuple[int, ...]
) -> None:
    from appliance.release import streaming

    assert streaming._significant(shape) == expected
