"""The field's usual way from an adapter to a GGUF: load all, merge, save, convert, quantize.

python benchmarks/reference_release.py BASE ADAPTER CONVERTER_DIRECTORY DIRECTORY FILE_TYPE...
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import llama_cpp
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM


def main() -> None:
    """Leaves `model-TYPE.gguf` in DIRECTORY, and everything that was made on the way."""
    base, adapter, converter, directory = (Path(each).resolve() for each in sys.argv[1:5])
    torch.set_num_threads(2)
    merged, float_file = directory / "merged", directory / "float.gguf"
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    model.save_pretrained(merged)
    for path in base.iterdir():
        if "token" in path.name or path.name == "chat_template.jinja":
            shutil.copy(path, merged)
    del model
    subprocess.run(
        [
            sys.executable,
            str(converter / "convert_hf_to_gguf.py"),
            str(merged),
            f"--outfile={float_file}",
            "--outtype=f32",
        ],
        check=True,
    )
    for name in sys.argv[5:]:
        params = llama_cpp.llama_model_quantize_default_params()
        params.nthread = 2
        params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")
        result = str(directory / f"model-{name}.gguf").encode()
        if llama_cpp.llama_model_quantize(str(float_file).encode(), result, ctypes.byref(params)):
            sys.exit("llama.cpp would not quantize")


if __name__ == "__main__":
    main()
