from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from appliance import gguf_header
from appliance.errors import ChildFailed
from appliance.records import Quantization

pytestmark = [pytest.mark.torch, pytest.mark.llama]


@pytest.mark.slow
@pytest.mark.parametrize("quantization", list(Quantization))
def test_types_that_are_foretold_are_those_that_llama_cpp_writes(
    quantization: Quantization, starter_gguf: Path, tmp_path: Path
) -> None:
    import llama_cpp

    from appliance.release import ggml, llamacpp

    foretold = llamacpp.tensor_types(starter_gguf, quantization)
    assert len(foretold) == 272
    written = tmp_path / "written.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llamacpp.FILE_TYPES[quantization]
    params.allow_requantize = True
    paths = (str(each).encode() for each in (starter_gguf, written))
    assert llama_cpp.llama_model_quantize(*paths, ctypes.byref(params)) == 0
    found = gguf_header.read(written).tensors
    assert {name: ggml.type_name(each.ggml_type) for name, each in found.items()} == foretold


def test_log_goes_to_whoever_began_to_listen_last(starter_gguf: Path) -> None:
    from appliance.release import llamacpp

    lines = []
    with llamacpp.log_to(lambda: lines.append(1)):
        llamacpp.tensor_types(starter_gguf, Quantization.Q8_0)
        assert not lines
        llamacpp.Model(starter_gguf, threads=1).__enter__().__exit__()
        assert lines


def test_reason_for_which_no_types_are_chosen_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from appliance.release import llamacpp

    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ChildFailed) as failed:
        llamacpp.tensor_types(broken, Quantization.Q8_0)
    assert failed.value.code == "quantization_failed"
    assert "failed to quantize" in capsys.readouterr().err
    assert broken.stat().st_size == 104
