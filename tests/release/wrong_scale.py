"""`python -m tests.release.wrong_scale BASE BASE_FILE ADAPTER CONVERTER WORK FACTOR TYPE`: a release that
adds FACTOR times what was trained, as WORK/wrong.gguf, the adapter beside it; prints what its weights tell.

A process of its own: the converter brings its own `gguf`, which another one in the process would hide.
"""

from __future__ import annotations

import sys
from pathlib import Path

import msgspec

from appliance.records import Quantization
from appliance.release import adapter, adapter_conversion, streaming, strength


def main() -> None:
    base, base_file, directory, converter, work = map(Path, sys.argv[1:6])
    factor, quantization = float(sys.argv[6]), Quantization(sys.argv[7])
    pairs = adapter.read(directory)
    adapter_conversion.convert(directory, pairs, base, work / "adapter.gguf", converter)
    wrong = {name: pair._replace(scaling=factor * pair.scaling) for name, pair in pairs.items()}
    layouts = streaming.layouts(base_file, [quantization], "wrong")
    streaming.write(
        streaming.Sources(base, wrong, converter),
        {work / "wrong.gguf": streaming.Destination(layouts[quantization])},
        threads=2,
        on_tensor=lambda name: None,
    )
    known = strength.references(converter, base, pairs)
    print(msgspec.json.encode(strength.measure(work / "wrong.gguf", known)).decode())


if __name__ == "__main__":
    main()
