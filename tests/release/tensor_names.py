"""`python -m tests.release.tensor_names BASE CONVERTER`: prints the names of the weights of BASE in its GGUF.

A process of its own: the converter brings its own `gguf`, which another one in the process would hide.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from appliance.release import converter


def main() -> None:
    base, directory = map(Path, sys.argv[1:3])
    names: list[str] = []
    for shard in sorted(base.glob("*.safetensors")):
        with shard.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        names += [name for name in header if name != "__metadata__"]
    print(json.dumps(converter.tensor_names(directory, base, names)))


if __name__ == "__main__":
    main()
