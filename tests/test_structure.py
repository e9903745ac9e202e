"""The house as DESIGN draws it: imports point one way, files and functions are short, names say what is in a file."""

import ast
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter

import pytest

from engine.flags import ROOT

# The rooms, and the modules of the hall: each imports only from those before it, or from its own room.
HALL = ("console", "files", "flags", "options", "packing", "loss", "optim", "loop", "cli")
ROOMS = ("corpus", "machine", "checkpoint", "generate", "log", "stage", "score", "serve", "pages")
ORDER = (
    "console", "files", "flags", "options", "corpus", "packing", "machine", "checkpoint", "generate", "log",
    "loss", "optim", "loop", "stage", "score", "serve", "pages", "cli",
)  # fmt: skip
FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
         for path in (*ROOT.glob("*.py"), *ROOT.glob("engine/**/*.py"))}  # fmt: skip
ENGINE = [name for name, path in FILES.items() if name.startswith("engine.") and path.name != "__init__.py"]
SHARED = {"Config", "model", "dataset"}
SCRIPTS = {name for name in FILES if "." not in name} - SHARED - {"engine"}
TOKENISING = ("dataset", "engine.console", "engine.corpus.jsonl", "engine.corpus.fast_bpe", "engine.corpus.token_cache")

LONGEST_MODULE = dict.fromkeys(FILES, 250) | {"model": 350, "dataset": 350}
LONGEST_MODULE |= dict.fromkeys(["pretrain", "SFT", "distill", "train_tokenizer", "export"], 100)
LONGEST_FUNCTION = {("engine.loop", "train"): 70}  # lines after the docstring; of all others 40


@cache
def tree_of(name: str) -> ast.Module:
    return ast.parse(FILES[name].read_text(encoding="utf-8"))


@cache
def imports(name: str) -> set[str]:
    """Every module that a module imports, inside functions too; `from engine import flags` is engine.flags."""
    found = set()
    for node in ast.walk(tree_of(name)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= inner or {node.module}
    return found


def ours(name: str) -> set[str]:
    return imports(name) & FILES.keys()


def place(name: str) -> str:
    """The room of an engine module, or its own name in the hall."""
    return name.split(".")[1]


def test_every_room_of_the_house_is_where_this_file_looks_for_it():
    assert sorted(ORDER) == sorted(HALL + ROOMS)
    assert {place(name) for name in ENGINE} == set(ORDER)
    assert len(ENGINE) >= 40
    for room in ROOMS:
        assert [name for name in ENGINE if name.startswith(f"engine.{room}.")], f"{room} is empty"
    assert {"pretrain", "SFT", "distill", "train_tokenizer", "eval_model", "export"} <= SCRIPTS
    assert "engine.stage.run" in ours("pretrain")
    assert "engine.corpus.token_cache" in ours("engine.stage.run")


# ---------------------------------------------------------------------------------------------------- imports


def test_config_and_dataset_import_nothing_of_ours_and_the_model_only_its_config():
    assert ours("Config") == ours("dataset") == set()
    assert ours("model") == {"Config"}
    assert not imports("dataset") & {"torch", "transformers"}


def test_a_module_imports_from_its_own_room_and_from_those_before_it():
    at = {name: ORDER.index(place(name)) for name in ENGINE}
    assert not {name: other for name in ENGINE for other in ours(name) - SHARED if at[other] > at[name]}


def test_nothing_imports_a_script():
    assert not {name: ours(name) & SCRIPTS for name in FILES if ours(name) & SCRIPTS}


def test_imports_make_no_circle():
    order = TopologicalSorter({name: ours(name) for name in FILES}).static_order()  # CycleError names the circle
    assert set(order) == FILES.keys()


@cache
def tower(name: str) -> list[str]:
    """The longest chain of engine modules that import each other, from this one down."""
    below = [tower(other) for other in sorted(ours(name)) if other in ENGINE]
    return [name, *max(below, key=len, default=[])]


def test_a_tower_of_imports_is_at_most_seven_deep():
    highest = max(map(tower, ENGINE), key=len)
    assert len(highest) <= 7, " -> ".join(highest)


def test_the_init_of_a_room_is_one_docstring():
    for room in ROOMS:
        body = tree_of(f"engine.{room}.__init__").body
        assert len(body) == 1, room
        assert isinstance(body[0].value.value, str), room


@pytest.mark.parametrize("name", TOKENISING)
def test_what_a_tokenising_process_loads_imports_no_torch_and_of_ours_only_its_room(name):
    assert ours(name) <= set(TOKENISING)
    assert not {other for other in imports(name) if other.split(".")[0] in ("torch", "transformers")}


def test_a_tokenising_process_loads_no_torch():
    program = "import sys, engine.corpus.token_cache; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, cwd=ROOT)
    assert "numpy" in done.stdout.split()
    assert not set(done.stdout.split()) & {"torch", "transformers"}


# ------------------------------------------------------------------------------------------------------ sizes


def test_no_module_is_longer_than_it_may_be():
    lines = {name: len(path.read_text(encoding="utf-8").splitlines()) for name, path in FILES.items()}
    assert not {name: count for name, count in lines.items() if count > LONGEST_MODULE[name]}


def lines_of(function: ast.FunctionDef) -> int:
    """From the first line after the docstring, comments included."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return function.end_lineno - body[0].lineno + 1 if body else 0


def test_no_function_is_longer_than_it_may_be():
    functions = [
        (name, node) for name in FILES for node in ast.walk(tree_of(name)) if isinstance(node, ast.FunctionDef)
    ]
    lines = {(name, function.name): lines_of(function) for name, function in functions}
    assert len(lines) > 200
    assert not {which: count for which, count in lines.items() if count > LONGEST_FUNCTION.get(which, 40)}


# ------------------------------------------------------------------------------------------------------ names


def test_no_file_shadows_a_module_of_python_or_has_a_name_that_says_nothing():
    vague = {"utils", "util", "helpers", "common", "misc", "base", "core", "config"}
    assert not {name for name in FILES if "." not in name and name in vague | sys.stdlib_module_names}
    assert not {name for name in FILES if name.split(".")[-1].lower() in vague} - {"Config"}
