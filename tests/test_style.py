"""The style sheet of CONTRIBUTING.md, as far as a program can check it."""

import ast
import io
import re
import tokenize
from functools import cache
from itertools import chain
from pathlib import Path

import pytest

from engine.flags import ROOT

FOLDERS = ("engine", "tests", "benchmarks", "runs", "docs")
FILES = list(chain(ROOT.glob("*.py"), *((ROOT / folder).glob("**/*.py") for folder in FOLDERS)))
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
RELATIVE_CLAUSE = re.compile(r"(What|Who|Whose|Whom|Where|How|Which|Whether|Why|When)\b")
PRIVATE_IDIOM = re.compile(r"\b(besides?|lies?|lay|stands?|stood|anew|(go|goes|going|went) on|nobody)\b", re.IGNORECASE)


@cache
def nodes(path: Path) -> list[tuple[ast.AST, ast.AST]]:
    """Return every node of a file with its parent."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pairs: list[tuple[ast.AST, ast.AST]] = [(tree, tree)]
    for parent in ast.walk(tree):
        pairs += [(child, parent) for child in ast.iter_child_nodes(parent)]
    return pairs


def is_crowded_assignment(node: ast.AST, parent: ast.AST) -> bool:
    """More than a pair in one assignment, or a conditional in a pair."""
    if not (isinstance(node, ast.Assign) and isinstance(node.value, ast.Tuple)):
        return False
    if not isinstance(node.targets[0], ast.Tuple):
        return False
    values = node.value.elts
    return len(values) > 2 or any(isinstance(value, ast.IfExp) for value in values)


def is_crowded_conditional(node: ast.AST, parent: ast.AST) -> bool:
    """A conditional expression in another one, as a callee, or feeding `for` or an augmented assignment."""
    if not isinstance(node, ast.IfExp):
        return False
    called = isinstance(parent, ast.Call) and parent.func is node
    iterated = isinstance(parent, (ast.For, ast.AsyncFor, ast.comprehension)) and parent.iter is node
    return called or iterated or isinstance(parent, (ast.IfExp, ast.AugAssign))


def is_crowded_comprehension(node: ast.AST, parent: ast.AST) -> bool:
    """More than one `for` or one `if` in a comprehension, or more than one line."""
    if not isinstance(node, COMPREHENSIONS):
        return False
    first = node.key if isinstance(node, ast.DictComp) else node.elt
    generator = node.generators[-1]
    last = generator.ifs[-1] if generator.ifs else generator.iter
    return len(node.generators) > 1 or len(generator.ifs) > 1 or first.lineno != last.end_lineno


def is_assigned_lambda(node: ast.AST, parent: ast.AST) -> bool:
    """A lambda with a name."""
    return isinstance(node, (ast.Assign, ast.AnnAssign)) and isinstance(node.value, ast.Lambda)


def is_pronoun(node: ast.AST, parent: ast.AST) -> bool:
    """A variable called `one`."""
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id == "one"


def is_headless_docstring(node: ast.AST, parent: ast.AST) -> bool:
    """A docstring that begins with a relative clause."""
    return isinstance(node, DOCUMENTED) and bool(RELATIVE_CLAUSE.match(ast.get_docstring(node) or ""))


def is_long_test_name(node: ast.AST, parent: ast.AST) -> bool:
    """A test of more than 70 characters."""
    return isinstance(node, ast.FunctionDef) and node.name.startswith("test_") and len(node.name) > 70


RULES = [
    is_crowded_assignment,
    is_crowded_conditional,
    is_crowded_comprehension,
    is_assigned_lambda,
    is_pronoun,
    is_headless_docstring,
    is_long_test_name,
]


@pytest.mark.parametrize("broken", RULES, ids=lambda rule: rule.__name__)
def test_no_file_breaks_a_rule_of_the_style_sheet(broken):
    places = []
    for path in FILES:
        for node, parent in nodes(path):
            if broken(node, parent):
                places.append(f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}")
    assert not places, f"{broken.__doc__} {places}"


def test_a_walrus_is_written_in_the_header_of_if_and_while_alone():
    places = []
    for path in FILES:
        headers = set()
        for node, _ in nodes(path):
            if isinstance(node, (ast.If, ast.While)):
                headers |= {part for part in ast.walk(node.test) if isinstance(part, ast.NamedExpr)}
        everywhere = {node for node, _ in nodes(path) if isinstance(node, ast.NamedExpr)}
        places += [f"{path.relative_to(ROOT)}:{node.lineno}" for node in everywhere - headers]
    assert not places


def test_no_private_idiom_in_code_and_english_docs():
    this = Path(__file__)
    english = [path for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")) if not path.stem.endswith("_zh")]
    places = []
    for path in {*FILES, *english} - {this, ROOT / "CONTRIBUTING.md"}:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if match := PRIVATE_IDIOM.search(line):
                places.append(f"{path.relative_to(ROOT)}:{number} {match[0]}")
    assert not places


def test_at_most_twelve_tables_are_formatted_by_hand():
    by_hand = []
    for path in FILES:
        tokens = tokenize.generate_tokens(io.StringIO(path.read_text(encoding="utf-8")).readline)
        comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
        by_hand += [path for comment in comments if re.match("# fmt: (skip|off)", comment)]
    assert len(by_hand) <= 12, by_hand


# ------------------------------------------------------------------------------------------------- docstrings

ROOMS = ("engine/generate/*.py", "engine/checkpoint/*.py", "engine/corpus/*.py", "engine/*.py", "*.py")
DOCUMENTED_FILES = sorted(chain.from_iterable(ROOT.glob(pattern) for pattern in ROOMS))
DOORS = {"main", "parse_args"}  # two lines that need no docstring


def public_functions(path: Path) -> list[ast.FunctionDef]:
    """Return the functions and methods of a file that others may call."""
    functions = []
    for node, parent in nodes(path):
        is_function = isinstance(node, ast.FunctionDef) and isinstance(parent, (ast.Module, ast.ClassDef))
        if is_function and not node.name.startswith("_") and node.name not in DOORS:
            functions.append(node)
    return functions


def missing_parts(function: ast.FunctionDef) -> list[str]:
    """Return what a docstring lacks: itself, an argument, the shape of a tensor, an error."""
    docstring = ast.get_docstring(function) or ""
    signature = ast.unparse(function.args) + ast.unparse(function.returns or ast.Constant(None))
    arguments = (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)
    names = [argument.arg for argument in arguments if argument.arg not in ("self", "cls")]
    _, _, section = docstring.partition("Args:")
    missing = [] if docstring else ["docstring"]
    if len(names) >= 3:
        missing += [name for name in names if not re.search(rf"\b{name}\b", section)]
    signature = re.sub(r"(dict|Mapping)\[str, Tensor\]", "", signature)  # a state dict
    if re.search(r"\bTensor\b|ndarray", signature) and not re.search(r"\(.*,.*\)|\(\)|\bshape\b|\{name", docstring):
        missing.append("shape")
    raises = [node for node in ast.walk(function) if isinstance(node, ast.Raise) and node.exc is not None]
    if raises and not re.search(r"Raises:|[A-Z]\w*(Error|Row)\b", docstring):
        missing.append("Raises")
    return missing


def test_public_docstrings_name_arguments_shapes_and_errors():
    places = []
    for path in DOCUMENTED_FILES:
        for function in public_functions(path):
            if missing := missing_parts(function):
                places.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name}: {', '.join(missing)}")
    assert not places, "\n".join(places)
