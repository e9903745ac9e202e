"""Imports point one way, names say what is in a file, and schedules are right at their corners."""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from engine.flags import ROOT
from engine.optim import schedule

FILES = {".".join(path.relative_to(ROOT).with_suffix("").parts): path
         for path in (*ROOT.glob("*.py"), *ROOT.glob("engine/*.py"))}  # fmt: skip
SHARED = {"Config", "model", "dataset"}
RECIPES = {name for name in FILES if "." not in name} - SHARED


def imports(path: Path) -> set[str]:
    """Every module a file imports, inside functions too; `from engine import flags` is engine.flags."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            inner = {f"{node.module}.{alias.name}" for alias in node.names} & FILES.keys()
            found |= inner or {node.module}
    return found


OURS = {name: imports(path) & FILES.keys() for name, path in FILES.items()}


def test_the_recipes_and_the_engine_are_where_this_file_looks_for_them():
    assert {"pretrain", "SFT", "distill", "train_tokenizer"} <= RECIPES
    assert "engine.flags" in OURS["pretrain"] and "engine.tokens" in OURS["engine.stage"]


def test_config_and_dataset_import_nothing_of_ours_and_the_model_only_its_config():
    assert OURS["Config"] == OURS["dataset"] == set() and OURS["model"] == {"Config"}


@pytest.mark.parametrize("name", ["dataset", "engine.encoder", "engine.jsonl", "engine.tokens"])
def test_what_a_tokenising_process_loads_imports_no_torch(name):
    assert not {module for module in imports(FILES[name]) if module.split(".")[0] in ("torch", "transformers")}
    assert OURS[name] <= {"dataset", "engine.encoder", "engine.jsonl"}


def test_nothing_imports_a_recipe():
    assert not {name: OURS[name] & RECIPES for name in FILES if OURS[name] & RECIPES}


def test_imports_make_no_circle():
    assert set(TopologicalSorter(OURS).static_order()) == FILES.keys()  # CycleError names the circle


def test_no_file_shadows_a_module_of_python_or_has_a_name_that_says_nothing():
    vague = {"utils", "util", "helpers", "common", "misc", "base", "core", "config"}
    assert not {name for name in FILES if "." not in name and name in vague | sys.stdlib_module_names}
    assert not {name for name in FILES if name.split(".")[-1].lower() in vague} - {"Config"}


# ----------------------------------------------------------------------------------------------- schedules


@pytest.mark.parametrize("name, last", [("cosine", 0.1), ("linear", 1 / 90), ("wsd", 1 / 20)])
def test_a_schedule_is_right_at_its_corners(name, last):
    rate = schedule(name, peak=3.0, steps=100, warmup=10)
    rates = [rate(step) for step in range(100)]
    assert rates[0] == pytest.approx(3 / 11) and rates[9] == pytest.approx(30 / 11) and rates[10] == pytest.approx(3)
    assert rates[99] == pytest.approx(3 * last)
    assert max(rates) <= 3 * (1 + 1e-12) and min(rates) > 0
    assert rates[:11] == sorted(rates[:11]) and rates[10:] == sorted(rates[10:], reverse=True)
    halfway = {"cosine": 0.55, "linear": 0.5, "wsd": 1.0}[name]
    assert (rates[54] + rates[55]) / 2 == pytest.approx(3 * halfway, rel=0.02)


def test_wsd_is_flat_and_then_falls_in_a_straight_line():
    rate = schedule("wsd", peak=1.0, steps=50, warmup=5, decay_share=0.4)
    assert [rate(step) for step in range(5, 31)] == [1.0] * 26
    assert [rate(step) for step in range(30, 50)] == pytest.approx([1 - step / 20 for step in range(20)])


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd"])
def test_a_run_of_one_step_without_warmup_takes_it_at_the_peak(name):
    assert schedule(name, peak=2.0, steps=1, warmup=0)(0) == pytest.approx(2)


@pytest.mark.parametrize("warmup", [-1, 10, 11])
def test_a_warmup_that_does_not_fit_is_refused_with_its_numbers(warmup):
    with pytest.raises(ValueError, match=f"warmup_iters={warmup} .* 10 steps"):
        schedule("cosine", peak=1.0, steps=10, warmup=warmup)


def test_an_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match="'step' is not known, expected one of cosine"):
        schedule("step", peak=1.0, steps=10, warmup=0)
