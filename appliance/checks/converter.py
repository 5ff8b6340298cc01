"""Is llama.cpp's converter there, and of the same version as the runtime?"""

from __future__ import annotations

import importlib.metadata

from appliance.checks.finding import Finding
from appliance.settings import Settings

NAME = "converter"
SCRIPT = "convert_hf_to_gguf.py"
VERSION_FILE = "LLAMA_CPP_PYTHON_VERSION"
REINSTALL = "run ./install.sh again"


async def check(settings: Settings) -> Finding:
    """Compare the version that the installer laid down with the installed llama-cpp-python."""
    directory = settings.converter_dir
    if not (directory / SCRIPT).is_file():
        return Finding(
            check=NAME, outcome="failed", found=f"no {SCRIPT} in {directory}", next_step=REINSTALL
        )
    try:
        runtime = importlib.metadata.version("llama-cpp-python")
        laid_down = (directory / VERSION_FILE).read_text(encoding="ascii").strip()
    except (importlib.metadata.PackageNotFoundError, OSError) as exc:
        return Finding(check=NAME, outcome="failed", found=str(exc), next_step=REINSTALL)
    if runtime != laid_down:
        found = f"converter of {laid_down}, runtime of {runtime}: they should be the same"
        return Finding(check=NAME, outcome="failed", found=found, next_step=REINSTALL)
    return Finding(check=NAME, outcome="ok", found=f"from llama-cpp-python {laid_down}")
