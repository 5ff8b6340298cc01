"""The formula for CPUs against real trainings: the trainer's own process, watched from outside."""

from __future__ import annotations

import msgspec
import pytest

from appliance.hardware.fit.training_on_cpu import CpuTraining, peak
from tests.children import starter, starter_gguf, starter_import
from tests.hardware.fit import trainings

__all__ = ["starter", "starter_gguf", "starter_import"]

TRAINING = CpuTraining(
    technique="qlora",
    tokens=1024,
    padded_rows=0,
    r=16,
    accumulates=False,
    bfloat16=True,
)
SHAPE = trainings.SHAPES["random-1b"]


def test_cases_cover_what_decides():
    tested = trainings.CASES[: trainings.TESTED]
    assert len(tested) == 8
    assert {case.model for case in tested} == set(trainings.SHAPES)
    for varied in ("technique", "batch", "tokens", "r", "float32", "ragged", "accumulation"):
        assert len({getattr(case, varied) for case in tested}) > 1, varied


@pytest.mark.torch
@pytest.mark.slow
@pytest.mark.timeout(900)  # a machine that computes bfloat16 slowly, or does something else beside
@pytest.mark.parametrize("number", range(trainings.TESTED))
def test_peak_is_predicted_within_15_percent_and_never_5_under(
    number, starter, tmp_path_factory, tmp_path
):
    case = trainings.CASES[number]
    models = tmp_path_factory.getbasetemp() / "random-models"
    base = trainings.base_directory(case.model, starter, models)
    measured = trainings.measure(case, base, tmp_path / "job")
    predicted = trainings.predict(case, base)
    print(f"{case}: measured {measured >> 20} MiB, predicted {predicted >> 20} MiB")
    assert 0.95 * measured <= predicted <= 1.15 * measured


def difference(**changes):
    changed = msgspec.structs.replace(TRAINING, **changes)
    return peak(SHAPE, changed) - peak(SHAPE, TRAINING)


def test_every_fact_counts():
    assert difference(tokens=2048) > 0
    assert difference(r=64) > 0
    assert difference(technique="lora") > 0
    assert difference(dropout=True) > difference(tokens=1200)
    assert difference(bfloat16=False) > 0
    assert difference(accumulates=True) == 2 * SHAPE.adapter_parameters(16)
    # A mask of 1,024 by 1,024 for one row, a quarter of that for four; and blocks that fit nothing.
    assert difference(padded_rows=1) - difference(padded_rows=4) == pytest.approx(
        9 * (3 << 18), rel=1e-3
    )
    assert difference(padded_rows=4) > 9 << 18
    assert difference(data_bytes=1 << 20) == pytest.approx(8 << 20, rel=0.05)
