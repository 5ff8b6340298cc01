"""How much memory a release takes, by the depth of the model: Llamas of random weights, hidden size 2048.

No comparison with a peer: a table of peaks, which should not grow with the number of layers. Takes 20 GB of
disk and 20 minutes on 2 cores.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from release_child import MIB, Watch, base_spec, random_adapter, run_child, trained_spec

from appliance.settings import STARTER

LAYERS = (8, 16, 32)
QUANTIZATION = "Q4_K_M"
HIDDEN, VOCABULARY = 2048, 49152
END_OF_TURN = 2


def main() -> None:
    """Print the peaks."""
    largest = HIDDEN * VOCABULARY * 4 / MIB
    print(f"largest tensor in float32: {largest:.0f} MiB; three times that and 250 MB: ", end="")
    print(f"{3 * largest + 250e6 / MIB:.0f} MiB")
    print(f"{'layers':>8}{'anonymous until written, MiB':>32}{'in all, MiB':>14}{'seconds':>10}")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tokenizer = _tokenizer(work)
        for layers in LAYERS:
            directory = work / str(layers)
            watch, seconds = _release(tokenizer, layers, directory)
            peaks = watch.anonymous_until_merged / MIB, watch.anonymous / MIB
            print(f"{layers:8}{peaks[0]:32.0f}{peaks[1]:14.0f}{seconds:10.0f}", flush=True)
            shutil.rmtree(directory)


def _tokenizer(work: Path) -> Path:
    source = next(STARTER.glob("*.gguf"))
    spec = {"name": "base", "source": str(source), "licence": "", "origin": "benchmark"}
    run_child("appliance.basemodels", work / "import", spec)
    return work / "import" / "hf"


def _release(tokenizer: Path, layers: int, directory: Path) -> tuple[Watch, float]:
    base = directory / "base"
    base.mkdir(parents=True)
    _write_random(base, layers)
    for path in tokenizer.iterdir():
        if path.name not in ("config.json", "generation_config.json", "model.safetensors"):
            shutil.copy(path, base)
    run_child("appliance.release", directory / "base-file", base_spec(base, QUANTIZATION))
    base_file = directory / "base-file" / f"model-{QUANTIZATION}.gguf"
    adapter = random_adapter(base, directory / "adapter", 16)
    spec = trained_spec(base, base_file, adapter, QUANTIZATION, END_OF_TURN)
    watch = Watch(directory / "release")
    return watch, run_child("appliance.release", directory / "release", spec, watch)


def _write_random(base: Path, layers: int) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=5632,
        num_hidden_layers=layers,
        num_attention_heads=32,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        dtype="bfloat16",
    )
    torch.set_default_dtype(torch.bfloat16)
    LlamaForCausalLM(config).save_pretrained(base)


if __name__ == "__main__":
    main()
