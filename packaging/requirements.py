"""Prints what pyproject.toml requires, one a line: the package's own dependencies and those of some extras.

python packaging/requirements.py [EXTRA ...]
"""

from __future__ import annotations

import sys
import tomllib
from pathlib import Path


def main() -> None:
    """Print the dependencies; an unknown extra is a KeyError."""
    text = Path(__file__).parent.with_name("pyproject.toml").read_text(encoding="utf-8")
    project = tomllib.loads(text)["project"]
    extras = project["optional-dependencies"]
    print(
        "\n".join(
            [*project["dependencies"], *(line for name in sys.argv[1:] for line in extras[name])]
        )
    )


if __name__ == "__main__":
    main()
