"""What the trained model does with rows of its data, written down before it is gone: a release has to do the
same, and no second full model is loaded to find out.

Held-out rows where there are any, else rows that were trained on. Knows nothing of releases.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from transformers import GenerationConfig

from appliance.child_records import TextPiece, TokenizedRow, TrainedAnswer, TrainedBehaviour
from appliance.training import rows
from appliance.training.rows import IGNORED_LABEL, Conversations, Example

ANSWERS = 8
MAX_ANSWER_TOKENS = 48
# Of each position so many tokens are kept; what the others have together follows from them.
LIKELY = 64
# Training makes a model sure of its answers, whatever else is wrong with it; in the prompts before them,
# which it was not trained to write, every difference shows.
PROMPT_PLACES = 64


def record(
    model: Any,
    examples: Sequence[Example],
    path: Path,
    conversations: Conversations,
    *,
    base_in_4_bits: bool,
    rows_at_once: int,
    alive: Callable[[], None],
) -> TrainedBehaviour:
    """Of `model`, which has its output head; `examples` were read from `path`."""
    model.eval()
    answers: list[TrainedAnswer] = []
    with torch.inference_mode():
        for batch in _batches(_spread(examples, ANSWERS), rows_at_once):
            prompts = [_prompt(each) for each in batch]
            for example, prompt, answer in zip(
                batch, prompts, _greedy(model, prompts), strict=True
            ):
                alive()
                answers.append(_answer(model, example.line, prompt, answer))
    return TrainedBehaviour(
        base_in_4_bits=base_in_4_bits,
        moved=_moved(model),
        rows=tuple(_tokenized(path, examples, conversations)),
        answers=tuple(answers),
    )


def _moved(model: PeftModel) -> dict[str, float]:
    """As the live layers have it: what is written of them, and how it is read, may be wrong."""
    found = {}
    for name, layer in model.base_model.model.named_modules():
        if isinstance(layer, LoraLayer):
            a = layer.lora_A["default"].weight.detach().cpu().double()
            b = layer.lora_B["default"].weight.detach().cpu().double()
            # The norm of B·A from two matrices of r·r, since B·A itself is as large as the weight.
            squares = float(((b.T @ b) * (a @ a.T)).sum())
            found[f"{name}.weight"] = abs(layer.scaling["default"]) * math.sqrt(max(0.0, squares))
    return found


def _tokenized(
    path: Path, examples: Sequence[Example], conversations: Conversations
) -> Iterator[TokenizedRow]:
    token_ids = {example.line: example.input_ids for example in examples}
    for line, pieces in rows.read_pieces(path, token_ids, conversations):
        yield TokenizedRow(
            line=line,
            pieces=tuple(TextPiece(text=each.text, is_plain=each.is_plain) for each in pieces),
            token_ids=tuple(token_ids[line]),
        )


def _spread(examples: Sequence[Example], count: int) -> list[Example]:
    """At most `count` of them, from the first to the last."""
    step = max(1, len(examples) // count)
    return list(examples[::step][:count])


def _batches(examples: Sequence[Example], size: int) -> Iterator[Sequence[Example]]:
    """Of like lengths, so that little is padded."""
    ordered = sorted(examples, key=lambda each: len(each.input_ids))
    for begin in range(0, len(ordered), size):
        yield ordered[begin : begin + size]


def _prompt(example: Example) -> list[int]:
    """Everything before the row's last answer that is trained on."""
    last = max(i for i, label in enumerate(example.labels) if label != IGNORED_LABEL)
    first = last
    while first and example.labels[first - 1] != IGNORED_LABEL:
        first -= 1
    return list(example.input_ids[:first])


def _stops(model: Any) -> list[int]:
    found = model.generation_config.eos_token_id
    return list(found) if isinstance(found, list) else [found]


def _greedy(model: Any, prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """The most likely answers, each with the token that ended it, if one did."""
    stops, width = _stops(model), max(map(len, prompts))
    padded = [[stops[0]] * (width - len(each)) + list(each) for each in prompts]
    mask = [[0] * (width - len(each)) + [1] * len(each) for each in prompts]
    generated = model.generate(
        input_ids=torch.tensor(padded, device=model.device),
        attention_mask=torch.tensor(mask, device=model.device),
        # Its own, since a publisher's may punish repetitions.
        generation_config=GenerationConfig(
            do_sample=False,
            max_new_tokens=MAX_ANSWER_TOKENS,
            eos_token_id=stops,
            pad_token_id=stops[0],
            use_cache=True,
        ),
    )
    return [_until_stop(row, stops) for row in generated[:, width:].tolist()]


def _until_stop(token_ids: list[int], stops: Collection[int]) -> list[int]:
    ends = (i + 1 for i, token_id in enumerate(token_ids) if token_id in stops)
    return token_ids[: next(ends, len(token_ids))]


def _answer(model: Any, line: int, prompt: list[int], answer: list[int]) -> TrainedAnswer:
    """Likelihoods come from one pass over the whole: in steps and in batches the last digits differ."""
    tokens = torch.tensor([prompt + answer], device=model.device)
    places = min(PROMPT_PLACES, len(prompt) - 1) + len(answer)
    # The score of a token stands at the place before it.
    scores = model(input_ids=tokens, logits_to_keep=places + 1).logits[0, :-1]
    likely = scores.float().log_softmax(-1).topk(LIKELY)
    return TrainedAnswer(
        line=line,
        prompt=tuple(prompt),
        answer=tuple(answer),
        stopped=answer[-1] in _stops(model),
        likely=tuple(
            tuple(zip(ids, logarithms, strict=True))
            for ids, logarithms in zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        ),
    )
