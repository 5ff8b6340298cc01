"""`python -m tests.release.wrong_scale BASE BASE_FILE ADAPTER CONVERTER WORK FACTOR`: a release in Q8_0 that
adds FACTOR times what was trained, as WORK/wrong.gguf, and the adapter beside it.

A process of its own: the converter brings its own `gguf`, which another one in the process would hide.
"""

from __future__ import annotations

import sys
from pathlib import Path

from appliance.records import Quantization
from appliance.release import adapter, adapter_conversion, streaming


def main() -> None:
    base, base_file, directory, converter, work = map(Path, sys.argv[1:6])
    factor = float(sys.argv[6])
    pairs = adapter.read(directory)
    adapter_conversion.convert(directory, pairs, base, work / "adapter.gguf", converter)
    wrong = {name: pair._replace(scaling=factor * pair.scaling) for name, pair in pairs.items()}
    layouts = streaming.layouts(base_file, [Quantization.Q8_0], "wrong")
    streaming.write(
        streaming.Sources(base, wrong, converter),
        {work / "wrong.gguf": layouts[Quantization.Q8_0]},
        threads=2,
        on_tensor=lambda name: None,
    )


if __name__ == "__main__":
    main()
