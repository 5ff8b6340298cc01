"""The layers, the borders between processes, and what no module may do, read from the source itself."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.settings import CHECKOUT

PACKAGE = CHECKOUT / "appliance"
MODULES = sorted(PACKAGE.rglob("*.py"))

LAYERS = {
    0: {
        "batch",
        "child_output",
        "child_records",
        "compute",
        "detached",
        "durable",
        "errors",
        "fields",
        "ggml_types",
        "gguf_header",
        "graders",
        "logs",
        "process",
        "prompts",
        "control_text",
        "records",
        "settings",
        "systemd",
        "upload_records",
        "versions",
    },
    1: {
        "basemodels",
        "datasets",
        "engine",
        "exports",
        "hardware",
        "release",
        "store",
        "training",
    },
    2: {"checks", "jobs", "serving"},
    3: {"api"},
    4: {"__main__", "cli", "daemon", "server"},
}
LAYER_OF = {name: layer for layer, names in LAYERS.items() for name in names}

HEAVY = {
    "accelerate",
    "bitsandbytes",
    "datasets",
    "gguf",
    "huggingface_hub",
    "llama_cpp",
    "numpy",
    "peft",
    "safetensors",
    "tokenizers",
    "torch",
    "transformers",
    "trl",
}
CHILDREN = {"basemodels", "engine", "release", "training"}
# What the daemon imports of the children.
TORCH_FREE = {
    "engine/answer.py",
    "engine/client.py",
    "engine/ending.py",
    "engine/json_primitives.py",
    "engine/json_schema.py",
    "engine/protocol.py",
    "engine/tools.py",
}


def module_id(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def component(path: Path) -> str:
    """The package or module right below `appliance` that a file belongs to."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


@functools.cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


@functools.cache
def imports(path: Path) -> frozenset[str]:
    """Every dotted name that a file imports, at the top or inside a function."""
    names: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def own_imports(path: Path) -> set[str]:
    """The components that a file imports; the package's own `__init__` has no layer."""
    found = {name.split(".")[1] for name in imports(path) if name.startswith("appliance.")}
    return found - {"__version__"}


every_module = pytest.mark.parametrize("path", MODULES, ids=module_id)


def test_modules_are_seen():
    assert len(MODULES) > 100
    components = {component(path) for path in MODULES} - {"__init__"}
    assert components == set(LAYER_OF)


@every_module
def test_imports_keep_the_layers(path):
    own = component(path)
    if own == "__init__":
        assert not own_imports(path)
        return
    for other in own_imports(path) - {own}:
        assert other in LAYER_OF, f"{module_id(path)} imports {other}, which has no layer"
        downwards = LAYER_OF[other] < LAYER_OF[own]
        beside = LAYER_OF[other] == LAYER_OF[own] and LAYER_OF[own] in (0, 4)
        assert downwards or beside, f"{module_id(path)} may not import {other}"


def test_foundation_has_no_cycle():
    needs = {name: own_imports(PACKAGE / f"{name}.py") - {name} for name in LAYERS[0]}
    while free := {name for name, needed in needs.items() if not needed & set(needs)}:
        needs = {name: needed for name, needed in needs.items() if name not in free}
    assert needs == {}


@every_module
def test_heavy_libraries_stay_in_the_children(path):
    heavy = {name.split(".")[0] for name in imports(path)} & HEAVY
    allowed = component(path) in CHILDREN and path.name != "__init__.py"
    if not allowed or module_id(path) in TORCH_FREE:
        assert not heavy, f"{module_id(path)} imports {heavy}"


@pytest.mark.parametrize(
    "module", ["appliance.daemon", "appliance.cli.app", "appliance.cli.doctor"]
)
def test_daemon_and_command_line_import_no_heavy_library(module):
    source = f"import sys, {module}; print(sorted(set(sys.modules) & {HEAVY | {'pickle5'}!r}))"
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, text=True, cwd=CHECKOUT
    )
    assert (done.returncode, done.stdout.strip()) == (0, "[]"), done.stderr


@every_module
def test_database_is_opened_by_the_store_alone(path):
    found = {name.split(".")[0] for name in imports(path)} & {"sqlalchemy", "sqlite3", "alembic"}
    assert not found or component(path) == "store"


STARTS = {
    "fork",
    "forkpty",
    "system",
    "popen",
    "posix_spawn",
    "posix_spawnp",
    "create_subprocess_exec",
    "create_subprocess_shell",
    "subprocess_exec",
    "subprocess_shell",
    "Popen",
}


@every_module
def test_processes_are_started_by_two_modules_alone(path):
    # The allocator replaces its own process, and starts none.
    if module_id(path) in ("process.py", "detached.py", "training/allocator.py"):
        return
    found = {name.split(".")[0] for name in imports(path)} & {
        "subprocess",
        "multiprocessing",
        "pty",
    }
    found |= {
        node.attr
        for node in ast.walk(tree(path))
        if isinstance(node, ast.Attribute)
        and (node.attr in STARTS or node.attr.startswith(("spawn", "exec")))
        # SQLAlchemy's, which start nothing.
        and node.attr not in ("execute", "execution_options", "exec_driver_sql")
    }
    assert not found


@every_module
def test_nothing_unsafe_is_used(path):
    found = {name.split(".")[0] for name in imports(path)} & {
        "cloudpickle",
        "dill",
        "joblib",
        "marshal",
        "pickle",
        "shelve",
    }
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and node.attr in ("extractall", "mktemp"):
            found.add(node.attr)
        if isinstance(node, ast.Call):
            found |= _unsafe_call(node)
    assert not found


def _unsafe_call(call: ast.Call) -> set[str]:
    name = ast.unparse(call.func)
    unsafe = {name} & {"torch.save", "torch.load", "eval", "exec", "__import__", "yaml.load"}
    for keyword in call.keywords:
        switched_on = not (isinstance(keyword.value, ast.Constant) and keyword.value.value is False)
        if keyword.arg in ("shell", "trust_remote_code") and switched_on:
            unsafe.add(f"{keyword.arg} in {name}")
    return unsafe


@pytest.mark.parametrize(
    "source",
    ["torch.load(x)", "eval('1')", "run(a, shell=True)", "load(trust_remote_code=flag)"],
)
def test_unsafe_calls_are_recognised(source):
    assert _unsafe_call(ast.parse(source, mode="eval").body)


@every_module
def test_module_is_small_and_says_what_it_does(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300
    assert ast.get_docstring(tree(path)), f"{module_id(path)} has no docstring"


def test_every_package_directory_is_a_package():
    directories = {path.parent for path in MODULES}
    assert len(directories) > 15
    assert [each for each in directories if not (each / "__init__.py").is_file()] == []


@every_module
def test_functions_are_short(path):
    if path.parent.name == "versions":
        return  # a migration is a list of tables
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 100, f"{module_id(path)}: {node.name}"
