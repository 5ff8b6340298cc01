"""Answers kept to a JSON Schema, beside free ones: 8 clients of the real daemon, in alternating rounds.

.venv/bin/python benchmarks/schema.py [--rounds 5] [--state-dir DIR]

Every answer that was to keep the schema is read as JSON, or the run fails.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import tempfile
from pathlib import Path
from typing import Any

from report import emit, row
from serving import import_starter, measure, ours

SCHEMA = {
    "type": "object",
    "properties": {
        "title": {"type": "string", "maxLength": 40},
        "kind": {"enum": ["story", "poem", "letter"]},
        "scenes": {"type": "array", "items": {"type": "string", "maxLength": 40}, "maxItems": 3},
        "sad": {"type": "boolean"},
    },
    "required": ["title", "kind", "scenes", "sad"],
    "additionalProperties": False,
}
KEPT = {"type": "json_schema", "json_schema": {"name": "story", "schema": SCHEMA}}
CLIENTS, REQUESTS, MAX_TOKENS = 8, 3, 600


def main() -> None:
    """Measure both ways of asking one daemon."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--state-dir", type=Path)
    arguments, sys.argv[1:] = parser.parse_known_args()
    kept: list[float] = []
    free: list[float] = []
    common: dict[str, Any] = {
        "clients": CLIENTS,
        "requests": REQUESTS,
        "max-tokens": MAX_TOKENS,
    }
    extra = {"extra": json.dumps({"response_format": KEPT})}
    with tempfile.TemporaryDirectory() as directory:
        state = arguments.state_dir or Path(directory, "state")
        if not list(state.glob("base_models/*/*Q4_K_M.gguf")):
            import_starter(state)
        with ours(state, arguments.threads) as server:
            measure(server, {"requests": 1, "clients": 2})
            for number in range(arguments.rounds):
                salt = secrets.token_hex(4)
                for is_kept in (True, False) if number % 2 else (False, True):
                    options = {**common, "salt": f"{salt}{is_kept}"}
                    if is_kept:
                        seen = measure(server, options | extra, "--check-json")
                        kept.append(seen["tokens_per_second"])
                    else:
                        # About as many tokens as a kept answer has.
                        free.append(
                            measure(server, options | {"max-tokens": 60})["tokens_per_second"]
                        )
    emit("schema", [row("8 clients", "throughput", "tokens/s", "without a schema", kept, free)])


if __name__ == "__main__":
    main()
