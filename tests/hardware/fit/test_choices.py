"""The table of what fits: its rows, their micro-batches, and margins that really are there."""

from __future__ import annotations

import pytest

from appliance.hardware.fit import choices, needs
from appliance.hardware.fit.choices import ServedFile
from tests.hardware.fit.test_planner import machine, needed, setup

LARGE = "llama-3.2-1b-instruct"


def found(gib: float, lengths=(128, 1024), name=LARGE):
    asked = setup(name, per_device_train_batch_size=8, gradient_accumulation_steps=1)
    return list(choices.training_choices(asked, lengths, machine(gib)))


@pytest.mark.parametrize(
    ("longest", "limit", "lengths"),
    [
        (369, 1024, (128, 256, 369, 512, 1024)),
        (5000, 1024, (128, 256, 512, 1024)),
        (40, 1024, (40, 128, 256, 512, 1024)),
        (100, 3000, (100, 256, 512, 1024, 2048)),
        (100, 32768, (100, 4096, 8192, 16384, 32768)),
        (70, 100, (64, 70)),
        (20, 30, (20,)),
    ],
)
def test_lengths_are_the_datas_and_powers_of_two_up_to_the_limit(longest, limit, lengths):
    assert choices.row_lengths(longest, limit) == lengths


def test_there_is_a_row_for_every_technique_and_length():
    rows = [(each.technique, each.row_tokens) for each in found(100)]
    assert rows == [("qlora", 128), ("qlora", 1024), ("lora", 128), ("lora", 1024)]


@pytest.mark.parametrize("gib", [2.5, 4, 6, 100])
def test_micro_batch_is_halved_until_it_fits(gib):
    where = machine(gib)
    for each in found(gib):

        def need(rows, each=each):
            asked = setup(
                LARGE,
                technique=each.technique,
                longest=each.row_tokens,
                per_device_train_batch_size=rows,
                gradient_accumulation_steps=8 // rows,
            )
            return needed(asked, where)

        rows = each.per_device_train_batch_size
        assert each.room.needed_bytes == need(rows or 1)
        assert each.room.fits == (rows is not None)
        if rows is None:
            assert need(1) > where.device_bytes
        else:
            assert need(rows) <= where.device_bytes
            assert rows in (1, 2, 4, 8)
            assert rows == 8 or need(2 * rows) > where.device_bytes


def test_tight_memory_shows_all_kinds_of_rows():
    sizes = [each.per_device_train_batch_size for each in found(2.5)]
    assert None in sizes
    assert any(size and size < 8 for size in sizes)


def test_room_is_what_is_left_or_missing():
    assert choices.room(75, 100) == choices.Room(
        needed_bytes=75, available_bytes=100, margin_bytes=25, margin_percent=25.0, fits=True
    )
    assert choices.room(100, 100).fits
    short = choices.room(101, 100)
    assert (short.fits, short.margin_bytes, short.margin_percent) == (False, -1, -1.0)
    nothing = choices.room(1, 0)
    assert (nothing.fits, nothing.margin_bytes, nothing.margin_percent) == (False, -1, None)


def test_served_file_takes_its_size_its_cache_its_shelf_and_the_engine():
    base, where = setup().shape, machine(1)
    file = ServedFile(quantization="Q8_0", file_bytes=1000, predicted=True)
    (one,) = choices.serving_choices(base, [file], 512, "f16", where)
    assert one.cache_bytes == 2 * 30 * 192 * 512 * 2
    assert one.room.needed_bytes == 1000 + 2 * one.cache_bytes + needs.engine_bytes("cpu")
    assert one.room.available_bytes == where.device_bytes
    (longer,) = choices.serving_choices(base, [file], 4096, "f16", where)
    assert longer.cache_bytes == 8 * one.cache_bytes


def test_device_and_not_the_host_is_where_models_are_trained_and_served():
    where = machine(24, "discrete", host_gib=0.1)
    (first, *_) = choices.training_choices(setup(), (128,), where)
    assert first.room.available_bytes == 24 << 30
    assert first.per_device_train_batch_size == 4
