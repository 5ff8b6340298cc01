"""Greedy answers beside llama-server's, which is another build: where they part, and by how little.

PYTHONPATH=. .venv/bin/python benchmarks/agreement.py --peer-python PYTHON [--state-dir DIR]

One client, one question at a time. At the first token that differs the gap is told between the logarithms
of the two tokens' likelihoods, as ours sees them: near nothing means that the two were equally likely.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import tempfile
from pathlib import Path
from typing import Any

import httpx
from serving import MODEL, Server, import_starter, ours, peer

from tests.engine.test_same_as_llama import QUESTIONS

MAX_TOKENS = 48
TOP = 10


def tokens(server: Server, question: str) -> list[dict[str, Any]]:
    """An answer's tokens, each with the likeliest in its place."""
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question}],
        "temperature": 0.0,
        "max_tokens": MAX_TOKENS,
        "logprobs": True,
        "top_logprobs": TOP,
    }
    response = httpx.post(
        f"{server.url}/v1/chat/completions",
        json=body,
        headers={"Authorization": f"Bearer {server.key}"},
        timeout=120,
    )
    response.raise_for_status()
    return list(response.json()["choices"][0]["logprobs"]["content"])


def first_gap(us: list[dict[str, Any]], them: list[dict[str, Any]]) -> tuple[int, float] | None:
    """Where two answers part and by how much; None if they do not."""
    for place, (mine, theirs) in enumerate(zip(us, them, strict=False)):
        if mine["token"] != theirs["token"]:
            likely = {each["token"]: each["logprob"] for each in mine["top_logprobs"]}
            return place, mine["logprob"] - likely.get(theirs["token"], float("-inf"))
    return None


def main() -> None:
    """Ask both everything, print what differs."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--peer-python", required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--state-dir", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory, contextlib.ExitStack() as stack:
        state = arguments.state_dir or Path(directory, "state")
        found = list(state.glob("base_models/*/*Q4_K_M.gguf"))
        gguf = found[0] if found else import_starter(state)
        us = stack.enter_context(ours(state, arguments.threads))
        them = stack.enter_context(peer(arguments.peer_python, gguf, arguments.threads))
        gaps = [first_gap(tokens(us, each), tokens(them, each)) for each in QUESTIONS]
    parted = [gap for gap in gaps if gap is not None]
    result = {
        "questions": len(gaps),
        "alike": len(gaps) - len(parted),
        "gap_median": statistics.median(gap for _, gap in parted) if parted else None,
        "gap_most": max((gap for _, gap in parted), default=None),
        "first_differences": [[place, round(gap, 4)] for place, gap in parted],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
