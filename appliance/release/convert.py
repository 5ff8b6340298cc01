"""`python -m appliance.release.convert SCRIPT ARGUMENTS`: run llama.cpp's converter as part of a child.

The script knows nothing of the parent that it must not outlive; this wrapper ties the knot, then becomes
the script. Imports nothing heavy: the converter brings its own `gguf`, newer than the one from PyPI.
"""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from appliance import process


def main() -> None:
    """Run the script as `python SCRIPT ARGUMENTS` would."""
    process.die_with_parent()
    script = Path(sys.argv[1])
    sys.argv = sys.argv[1:]
    # The script imports the package `conversion` that lies beside it.
    sys.path[0] = str(script.parent)
    runpy.run_path(str(script), run_name="__main__")


if __name__ == "__main__":
    main()
