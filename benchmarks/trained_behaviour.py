"""`trained_behaviour.py BASE ADAPTER`: what base and adapter do with a few rows, as a trainer writes it down.

A process of its own, so that the model's memory is gone when a release is measured.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from appliance import durable
from appliance.training import behaviour, rows

QUESTIONS = (
    "Count from 1 to 10.",
    "What is the capital of France?",
    "It's 12:30,  isn't it?",
    "日本語",
)


def main() -> None:
    """Write `behaviour.json` beside the adapter."""
    base, adapter = map(Path, sys.argv[1:])
    data = adapter / "rows.jsonl"
    data.write_text("".join(map(_row, QUESTIONS)), encoding="utf-8")
    conversations = rows.Conversations(AutoTokenizer.from_pretrained(base))
    examples = rows.read_examples(data, conversations, max_length=512, alive=lambda: None)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    found = behaviour.record(
        PeftModel.from_pretrained(model, str(adapter)),
        examples,
        data,
        conversations,
        base_in_4_bits=False,
        rows_at_once=len(QUESTIONS),
        alive=lambda: None,
    )
    durable.write_json(adapter / "behaviour.json", found)


def _row(question: str) -> str:
    messages = [
        {"role": "user", "content": question},
        {"role": "assistant", "content": "I do not know."},
    ]
    return json.dumps({"messages": messages}) + "\n"


if __name__ == "__main__":
    main()
