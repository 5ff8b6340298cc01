"""How fast training rows are checked, beside reading the same file with `datasets.load_dataset`.

.venv/bin/python benchmarks/row_checking.py [--json PATH]
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from report import emit, row

from appliance.datasets import chat_rows

ROUNDS = 5
ROWS = 50_000
WORDS = [f"word{number}" for number in range(5000)]


def make_file(path: Path) -> None:
    """Chat rows of 5 to 120 words a turn."""
    rng = random.Random(1)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(ROWS):
            turns = [
                {"role": role, "content": " ".join(rng.choices(WORDS, k=rng.randint(5, 120)))}
                for role in ("system", "user", "assistant")
            ]
            file.write(json.dumps({"messages": turns}) + "\n")


def load_with_datasets(path: Path, cache: Path) -> None:
    """The peer: read into Arrow, without checking roles or turns."""
    from datasets import load_dataset

    load_dataset("json", data_files=str(path), cache_dir=str(cache), split="train")


def rate(work: Callable[[], object], size_bytes: int) -> float:
    """Bytes a second."""
    start = time.perf_counter()
    work()
    return size_bytes / (time.perf_counter() - start)


def main() -> None:
    """Measure both in turn."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, "rows.jsonl")
        make_file(path)
        size = path.stat().st_size
        for number in range(ROUNDS):
            ours.append(rate(lambda: chat_rows.check_file(path), size))
            cache = Path(directory, f"cache-{number}")
            theirs.append(rate(lambda cache=cache: load_with_datasets(path, cache), size))
    emit(
        "row_checking",
        [row(f"{ROWS} rows", "throughput", "bytes/s", "datasets.load_dataset", ours, theirs)],
    )


if __name__ == "__main__":
    main()
