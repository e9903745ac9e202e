"""The package layout holds: imports go down the layers, file names say what is inside, nothing grows too long."""

import ast
import sys
from collections.abc import Collection, Iterable
from functools import cache
from graphlib import TopologicalSorter
from itertools import chain
from pathlib import Path

import pytest

from engine.flags import ROOT

PATHS = (*ROOT.glob("*.py"), *ROOT.glob("engine/**/*.py"))
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in PATHS}
# Modules and rooms of engine/ in the order in which they may import: only earlier ones, or their neighbors.
ORDER = (
    ("console", "files", "flags"),
    ("options", "tokenizer", "schemas", "reasoning"),
    ("corpus",),
    ("packing",),
    ("machine",),
    ("checkpoint", "generate", "log"),
    ("loss", "optim"),
    ("loop",),
    ("stage",),
    ("score",),
    ("talk", "serve", "export", "pages"),
    ("cli",),
)
ROOMS = ("corpus", "machine", "checkpoint", "generate", "log", "stage", "score", "talk", "serve", "export", "pages")
SHARED = {"Config", "model", "dataset"}
SCRIPTS = {name for name in FILES if "." not in name} - SHARED
MOST_STATEMENTS = dict.fromkeys(("prepare_data", "pretrain", "SFT", "distill", "train_tokenizer", "export"), 70)
LONGER_FUNCTIONS = {"engine.loop.train": 65}


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions too; `from engine import options` is engine.options."""
    found = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= inner or {node.module}
    return found


OURS = {name: imports(path) & FILES.keys() for name, path in FILES.items()}
ENGINE = [name for name in FILES if name.startswith("engine.") and not name.endswith("__init__")]


def position(name: str) -> int:
    """Return the position of a module of the engine in ORDER."""
    part = name.split(".")[1]
    return [part in names for names in ORDER].index(True)


def imported_by(names: Iterable[str], among: Collection[str]) -> set[tuple[str, str]]:
    """Return the pairs (module, module that it imports) with the second `among` some."""
    pairs = set()
    for name in names:
        pairs |= {(name, other) for other in OURS[name] if other in among}
    return pairs


def test_every_package_is_found_by_this_file():
    assert {"pretrain", "SFT", "distill", "train_tokenizer", "eval_model", "export"} <= SCRIPTS
    assert len(ENGINE) >= 40 and {name.split(".")[1] for name in ENGINE} == set(chain(*ORDER))
    for room in ROOMS:
        assert sum(name.startswith(f"engine.{room}.") for name in ENGINE) >= 2, room
    assert "engine.stage.train" in OURS["pretrain"] and "engine.loop" in OURS["engine.stage.train"]


def test_imports_go_to_the_left_only():
    pairs = imported_by(ENGINE, ENGINE)
    assert not {(name, other) for name, other in pairs if position(other) > position(name)}
    assert not imported_by(ENGINE, SCRIPTS) and not imported_by(SCRIPTS, SCRIPTS)  # each script is alone


LEAVES = {f"engine.{name}" for name in ("console", "files", "flags", "tokenizer", "schemas", "reasoning")}


def test_config_model_and_dataset_import_leaves_alone():
    assert OURS["Config"] == set() and OURS["model"] == {"Config"}
    assert OURS["dataset"] <= LEAVES
    assert not imported_by(LEAVES, OURS.keys() - LEAVES)


def test_import_graph_is_acyclic_and_at_most_nine_deep():
    graph = {name: OURS[name] & set(ENGINE) for name in ENGINE}
    depth = {}
    for name in TopologicalSorter(graph).static_order():  # CycleError names the cycle
        depth[name] = 1 + max((depth[other] for other in graph[name]), default=0)
    assert max(depth.values()) <= 9, {name: value for name, value in depth.items() if value > 9}


def test_init_file_of_a_package_is_one_docstring():
    for room in ("", *(f"{room}/" for room in ROOMS)):
        body = tree(ROOT / f"engine/{room}__init__.py").body
        assert len(body) == 1 and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant), room


def needed_by(name: str) -> set[str]:
    """Return a module of ours and all of ours that it loads, through others too."""
    loaded, waiting = set(), {name}
    while waiting:
        module = waiting.pop()
        loaded.add(module)
        waiting |= OURS[module] - loaded
    return loaded


def test_modules_of_a_tokenizing_process_import_no_torch():
    loaded = needed_by("engine.corpus.token_cache")
    assert {"dataset", "engine.corpus.jsonl", "engine.corpus.tiktoken_backend"} <= loaded
    outside = {module.split(".")[0] for module in set().union(*(imports(FILES[name]) for name in loaded))}
    assert not outside & {"torch", "transformers"}


def test_no_file_shadows_a_python_module_or_has_a_vague_name():
    vague = {"utils", "util", "helpers", "common", "misc", "base", "core", "config"}
    assert not {name for name in FILES if "." not in name and name in vague | sys.stdlib_module_names}
    assert not {name for name in FILES if name.split(".")[-1].lower() in vague} - {"Config"}


def num_statements(node: ast.AST) -> int:
    """Count the statements below a node; docstrings, comments and line breaks are free."""
    return sum(isinstance(part, ast.stmt) and not is_docstring(part) for part in ast.walk(node)) - isinstance(
        node, ast.stmt
    )


def is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_module_is_one_thing_and_a_function_fits_on_a_screen(name):
    assert num_statements(tree(FILES[name])) <= MOST_STATEMENTS.get(name, 220)
    for node in ast.walk(tree(FILES[name])):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            assert num_statements(node) <= LONGER_FUNCTIONS.get(f"{name}.{node.name}", 40), node.name


# Modules without a test file of their name, and the files that test them.
TESTED_IN = {
    "Config": "test_model stage/test_rope_scaling",
    **dict.fromkeys(("pretrain", "SFT", "distill"), "test_flags stage/test_train"),
    **dict.fromkeys(("train_tokenizer", "eval_model", "export"), "test_flags"),
    "serve": "serve/test_api",
    "engine.pages.prepared": "test_prepare_data",
    **dict.fromkeys(("engine.corpus.cleaned_rows", "engine.corpus.dropped_rows"), "test_prepare_data"),
    "engine.corpus.prepared": "test_prepare_data",
    "engine.stage.saver": "stage/test_train faults/test_disk",
}


def test_every_module_has_a_test_file_of_its_name():
    names = {path.stem for path in ROOT.glob("tests/**/test_*.py")}
    missing = {name for name in FILES if not name.endswith("__init__") and f"test_{name.split('.')[-1]}" not in names}
    assert missing <= TESTED_IN.keys()
    for files in TESTED_IN.values():
        assert all((ROOT / "tests" / f"{file}.py").is_file() for file in files.split())
