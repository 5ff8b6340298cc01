"""The documents keep up with the code: the tree, the settings, the routes, the errors, the profiles."""

from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from appliance import errors
from appliance.errors import ApplianceError
from appliance.hardware.profiles import HardwareProfile
from appliance.settings import CHECKOUT, Settings
from tests.api.test_auth import ROUTES

# What is made, not written: caches, builds, environments, a demo's state; and what only git reads.
NOT_SHOWN = re.compile(
    r"\.git(ignore|attributes)?|\.venv(-.*)?|\.appliance|\.cache|\..*_cache|.*\.egg-info|build|dist|__pycache__"
)


@pytest.fixture(scope="module")
def readme() -> str:
    return (CHECKOUT / "README.md").read_text(encoding="utf-8")


def document(name: str) -> str:
    return (CHECKOUT / "docs" / name).read_text(encoding="utf-8")


def entries(directory: Path) -> set[str]:
    """Names in a directory, a slash behind those of directories."""
    return {
        path.name + "/" * path.is_dir()
        for path in directory.iterdir()
        if not NOT_SHOWN.fullmatch(path.name)
    }


def shown_in(readme: str, indent: str) -> list[str]:
    """The entries of the README's tree at one depth: a name, spaces, what it is."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    tree = next(block for block in blocks if "\nappliance/ " in block)
    return re.findall(rf"^{indent}([\w.]\S*)\s\s+\S", tree, re.MULTILINE)


@pytest.mark.parametrize(
    ("indent", "directory", "least"), [("", CHECKOUT, 10), ("  ", CHECKOUT / "appliance", 20)]
)
def test_readme_tree_is_the_real_tree(readme, indent, directory, least):
    shown, real = shown_in(readme, indent), entries(directory)
    assert len(shown) == len(set(shown)) >= least
    assert set(shown) == real


def test_every_setting_is_described():
    text = document("settings.md")
    names = [field.name for field in msgspec.structs.fields(Settings)]
    assert [name for name in names if f"`{name}`" not in text] == []
    described = re.findall(r"^\| `(\w+)` \|", text, re.MULTILINE)
    assert described == names


def test_every_value_of_a_profile_is_described():
    names = {field.name for field in msgspec.structs.fields(HardwareProfile)} - {"name"}
    text = document("profiles.md")
    described = re.findall(r"^\| (`.*?`) \|", text, re.MULTILINE)
    assert {name for cell in described for name in re.findall(r"`(\w+)`", cell)} == {
        "inherits",
        *names,
    }


def test_every_route_is_described():
    text = document("api.md")
    described = set(re.findall(r"^\| `([A-Z]+) (\S+)` \|", text, re.MULTILINE))
    assert described == set(ROUTES)


def test_every_kind_of_error_is_described():
    text = document("api.md")
    kinds = {kind.__name__ for kind in ApplianceError.__subclasses__()}
    assert kinds == set(re.findall(r"^\s*[├└]─ (\w+)", errors.__doc__ or "", re.MULTILINE))
    assert {kind for kind in kinds if f"`{kind}`" not in text} == set()


def test_documents_link_to_what_is_there(readme):
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", readme)
    assert [link for link in links if not (CHECKOUT / link).exists()] == []
