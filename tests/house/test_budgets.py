"""Budgets of the code: sizes, names of doors, what may be caught and printed. A rule that is broken is named with its place."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODULES = sorted((ROOT / "node").rglob("*.py"))

MAX_MODULE_LINES = 400
MAX_FUNCTION_LINES = 80
MAX_PARAMETERS = 6

PRINTERS = ("cli",)
"""Packages of node/ whose output is stdout."""


def place(path: Path, node: ast.AST) -> str:
    return f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 1)}"


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


@pytest.fixture(scope="module")
def trees() -> dict[Path, ast.Module]:
    return {path: ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}


def test_the_package_has_modules() -> None:
    assert len(MODULES) > 20


def test_no_module_is_longer_than_the_budget() -> None:
    lengths = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in MODULES}
    assert not {str(path.relative_to(ROOT)): lines for path, lines in lengths.items() if lines > MAX_MODULE_LINES}


def test_no_function_is_longer_than_the_budget(trees: dict[Path, ast.Module]) -> None:
    long = {
        f"{place(path, function)} {function.name}": lines
        for path, tree in trees.items()
        for function in functions(tree)
        if (lines := (function.end_lineno or 0) - function.lineno + 1) > MAX_FUNCTION_LINES
    }
    assert not long


def test_no_function_takes_more_parameters_than_the_budget(trees: dict[Path, ast.Module]) -> None:
    many = {}
    for path, tree in trees.items():
        for function in functions(tree):
            names = [argument.arg for argument in (*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs)]
            count = len([name for name in names if name not in {"self", "cls"}])
            if count > MAX_PARAMETERS:
                many[f"{place(path, function)} {function.name}"] = count
    assert not many


def test_nothing_prints_but_the_command_line(trees: dict[Path, ast.Module]) -> None:
    printed = [
        place(path, node)
        for path, tree in trees.items()
        if path.relative_to(ROOT / "node").parts[0] not in PRINTERS
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not printed


def test_a_broad_except_gives_its_reason(trees: dict[Path, ast.Module]) -> None:
    """A comment in the same line, or the first thing in its block; or it raises again."""
    silent = []
    for path, tree in trees.items():
        lines = path.read_text(encoding="utf-8").splitlines()
        for node in ast.walk(tree):
            if not isinstance(node, ast.ExceptHandler) or not is_broad(node):
                continue
            reraises = any(isinstance(inner, ast.Raise) and inner.exc is None for inner in ast.walk(node))
            near = lines[node.lineno - 1 : node.body[0].lineno]
            if not reraises and not any(re.search(r"#(?! noqa: \w+$)", line) for line in near):
                silent.append(place(path, node))
    assert not silent


def is_broad(handler: ast.ExceptHandler) -> bool:
    kinds = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return any(kind is None or (isinstance(kind, ast.Name) and kind.id in {"Exception", "BaseException"}) for kind in kinds)


def test_no_bare_except(trees: dict[Path, ast.Module]) -> None:
    bare = [
        place(path, node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.ExceptHandler) and not node.type
    ]
    assert not bare


def test_every_suppression_gives_its_reason() -> None:
    """`# noqa: X - why` and `# type: ignore[x]` with a code; a bare one hides more than it says."""
    bare = []
    for path in MODULES:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            if re.search(r"#\s*noqa(?!: [A-Z]+[0-9]+)", line) or re.search(r"#\s*type:\s*ignore(?!\[)", line):
                bare.append(f"{path.relative_to(ROOT)}:{number}")
    assert not bare


def test_there_is_no_unfinished_business(trees: dict[Path, ast.Module]) -> None:
    marks = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in MODULES
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if re.search(r"\b(TODO|FIXME|XXX)\b", line)
    ]
    stubs = [
        place(path, node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and node.exc is not None and "NotImplementedError" in ast.dump(node.exc)
    ]
    assert not marks + stubs


def test_every_module_says_what_it_is(trees: dict[Path, ast.Module]) -> None:
    assert not [str(path.relative_to(ROOT)) for path, tree in trees.items() if not ast.get_docstring(tree)]
