"""Base and adapter as one Hugging Face directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from appliance import durable
from appliance.batch import Failure
from appliance.child_records import MergeResult
from tests.children import make_adapter, run_child

pytestmark = [
    pytest.mark.slow,
    pytest.mark.torch,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning"),
]


def spec(base: Path, adapter: Path, job: Path) -> dict[str, Any]:
    return {
        "base_directory": str(base),
        "adapter_directory": str(adapter),
        "destination": str(job.with_name("merged")),
        "threads": 2,
    }


def refusal_of(directory: Path, base: Path, adapter: Path) -> Failure:
    done = run_child("appliance.release.merge", directory, spec(base, adapter, directory))
    assert done.returncode == 1, done.stderr
    return durable.read_json(directory / "error.json", Failure)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_weights_are_those_that_peft_merges_bit_by_bit(
    dtype: str, tiny: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    model = AutoModelForCausalLM.from_pretrained(tiny, dtype=getattr(torch, dtype))
    (base / "model.safetensors").unlink()
    model.save_pretrained(base, max_shard_size="100KB")
    assert len(list(base.glob("*.safetensors"))) > 2
    adapter = make_adapter(base, tmp_path / "adapter", use_rslora=True)
    done = run_child(
        "appliance.release.merge", tmp_path / "job", spec(base, adapter, tmp_path / "job")
    )
    assert done.returncode == 0, done.stderr
    result = durable.read_json(tmp_path / "job" / "result.json", MergeResult)
    assert result.merged_weights == 14
    merged = tmp_path / "merged"
    assert {path.name for path in merged.iterdir()} == {path.name for path in base.iterdir()}

    found = AutoModelForCausalLM.from_pretrained(merged, dtype="auto").state_dict()
    # In float32, as the release: PEFT adds in the base's own type where that is narrower.
    whole = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    expected = PeftModel.from_pretrained(whole, str(adapter)).merge_and_unload().state_dict()
    assert found.keys() == expected.keys()
    changed = 0
    before = model.state_dict()
    for name, value in expected.items():
        assert torch.equal(found[name], value.to(getattr(torch, dtype))), name
        changed += not torch.equal(found[name], before[name])
    assert changed == 14


def test_a_weight_that_the_base_lacks_is_told(tiny: Path, tmp_path: Path) -> None:
    adapter = make_adapter(tiny, tmp_path / "adapter")
    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    from safetensors.torch import load_file, save_file

    tensors = load_file(base / "model.safetensors")
    tensors["other"] = tensors.pop("model.layers.1.mlp.up_proj.weight")
    save_file(tensors, base / "model.safetensors")
    failure = refusal_of(tmp_path / "job", base, adapter)
    assert failure.code == "release_check_failed"
    assert "model.layers.1.mlp.up_proj.weight should be a weight of the base" in failure.message


def test_an_overflow_is_told(tiny: Path, tmp_path: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    base = Path(shutil.copytree(tiny, tmp_path / "base"))
    AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float16).save_pretrained(base)
    adapter = make_adapter(tiny, tmp_path / "adapter")
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] = 10**8
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    failure = refusal_of(tmp_path / "job", base, adapter)
    assert "finite numbers in torch.float16" in failure.message
