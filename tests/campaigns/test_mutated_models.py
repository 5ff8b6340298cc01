"""A small part of the campaign, always the same files."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance import durable
from appliance.child_records import ImportResult
from tests.campaigns import mutated_models, seeds
from tests.children import import_spec, run_child

pytestmark = [pytest.mark.slow, pytest.mark.torch, pytest.mark.llama]


@pytest.mark.parametrize("kind", ["file", "directory"])
def test_what_is_damaged_comes_in_undamaged(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "seed"
    if kind == "file":
        seeds.write_gguf(source)
    else:
        seeds.write_directory(source)
    done = run_child("appliance.basemodels", tmp_path / "import", import_spec(source))
    assert done.returncode == 0, done.stderr[-2000:]
    found = durable.read_json(tmp_path / "import" / "result.json", ImportResult)
    assert found.context_length == 512


@pytest.mark.timeout(900)
def test_damaged_models_are_refused_or_come_in(tmp_path: Path) -> None:
    outcomes = mutated_models.run(400, 1, tmp_path, daemon_every=200)
    print(outcomes)
    assert mutated_models.bad(outcomes) == {}
    beside = sum(count for name, count in outcomes.items() if name.startswith("beside:"))
    assert beside == 2
    assert outcomes.total() == 402
    # Damage of every kind gets as far as the place where it is found.
    for outcome in ("imported", "invalid_gguf", "unsafe_model_directory", "invalid_template"):
        assert outcomes[outcome] > 10
    for outcome in ("invalid_tokenizer", "unreadable_model"):
        assert outcomes[outcome] > 3


def test_a_file_is_made_again_from_seed_and_number(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    damager = mutated_models.Damager(tmp_path / "work", 7)
    for number in range(30):
        first = damager.write(number, tmp_path / "first")
        second = damager.write(number, tmp_path / "second")
        if first.is_file():
            assert first.read_bytes() == second.read_bytes()
        mutated_models._remove(first)
        mutated_models._remove(second)


def test_a_worker_that_dies_is_told_and_replaced(tmp_path: Path) -> None:
    seeds.write_gguf(tmp_path / "seed.gguf")
    with mutated_models.Worker(tmp_path / "log") as worker:
        assert worker.ask(tmp_path / "seed.gguf", tmp_path / "import") == "imported"
        # No spec can be written into a file.
        (tmp_path / "file").touch()
        assert worker.ask(tmp_path / "seed.gguf", tmp_path / "file" / "x") == "died:1"
        assert worker.ask(tmp_path / "seed.gguf", tmp_path / "import") == "imported"
