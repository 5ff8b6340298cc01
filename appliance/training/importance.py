"""How much each input of a layer matters, for the quantizer: the mean square of what comes in there.

That is llama.cpp's statistic (tools/imatrix, `collect_imatrix`), taken with forward hooks from the model as
it was trained, over rows that it was trained on. Knows nothing of GGUF.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from safetensors.torch import save

from appliance import durable
from appliance.training.rows import Example

# More changes little: llama.cpp's own advice is some hundred chunks of 512 for a general model, and these
# are of the very kind that it will be asked about.
MOST_TOKENS = 16_384
MOST_ROWS = 128
TOKENS = "tokens"


def record(
    model: PeftModel, examples: Sequence[Example], path: Path, alive: Callable[[], None]
) -> int:
    """Write durably, for each weight by the base's name of it, [inputs] in float32, and over how many tokens;
    returns that number. The rows are taken from the first to the last of `examples`."""
    model.eval()
    with torch.inference_mode(), _listening(model) as squares:
        tokens = 0
        for example in _spread(examples):
            ids = list(example.input_ids)[: MOST_TOKENS - tokens]
            # One by one: nothing is padded.
            model(input_ids=torch.tensor([ids], device=model.device), logits_to_keep=1)
            tokens += len(ids)
            alive()
            if tokens >= MOST_TOKENS:
                break
    means = {name: (total / tokens).float().cpu() for name, total in squares.items()}
    durable.write_durably(path, save(means, {TOKENS: str(tokens)}))
    return tokens


def _spread(examples: Sequence[Example]) -> Sequence[Example]:
    return examples[:: max(1, len(examples) // MOST_ROWS)][:MOST_ROWS]


@contextlib.contextmanager
def _listening(model: PeftModel) -> Iterator[dict[str, torch.Tensor]]:
    """Sums of squares [inputs] by name of the weight, which grow with each pass while the context lasts."""
    squares: dict[str, torch.Tensor] = {}

    def listener(name: str) -> Callable[[Any, tuple[torch.Tensor, ...]], None]:
        def listen(_module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
            found = inputs[0].float().square().flatten(0, -2).sum(0).double()
            squares[name] = squares[name] + found if name in squares else found

        return listen

    with contextlib.ExitStack() as hooks:
        for name, layer in _linear_layers(model):
            hook = layer.register_forward_pre_hook(listener(f"{name}.weight"))
            hooks.callback(hook.remove)
        yield squares


def _linear_layers(model: PeftModel) -> Iterator[tuple[str, Any]]:
    """All but the output head, which llama.cpp leaves away, too."""
    head = model.get_output_embeddings()
    inside: tuple[str, ...] = ()
    for name, layer in model.base_model.model.named_modules():
        if name.startswith(inside) and inside:
            continue
        if isinstance(layer, LoraLayer):
            inside = (*inside, f"{name}.")
            yield name, layer
        elif isinstance(layer, torch.nn.Linear) and layer is not head:
            yield name, layer
