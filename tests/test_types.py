"""What is handed over says what it is: types of parameters and fields, and how long functions and modules may be.

Whether the types are right is mypy's to say; here it is only asked whether they are named.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.paths import ROOT

TRAINING = ROOT / "training"
FILES = sorted(path.relative_to(TRAINING) for path in TRAINING.rglob("*.py"))
# Names of parameters and fields that mean one class of this project, or of torch and transformers, wherever they stand.
NAMES = {
    *("settings", "base", "plan", "job", "run", "events", "signals", "session", "order", "template", "tokenizer"),
    *("watch", "data", "team", "error", "model", "trainer", "summary"),
}
MOST_ANY = 0.03  # of all parameters that have a type
LONGEST_MODULE, LONGEST_FUNCTION = 400, 50
ONE_TABLE = "train/arguments.py: arguments"  # one call, with all that transformers' Trainer is told


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse((TRAINING / file).read_text(encoding="utf-8"))


def functions() -> Iterator[tuple[Path, ast.FunctionDef | ast.AsyncFunctionDef]]:
    """Every function, nested ones too, with its file."""
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                yield file, node


def typed_parameters() -> Iterator[tuple[Path, ast.arg, str]]:
    """Every parameter with a type: its file, itself, and the type as it is written."""
    for file, function in functions():
        every = function.args
        rest = [argument for argument in (every.vararg, every.kwarg) if argument]
        for argument in (*every.posonlyargs, *every.args, *every.kwonlyargs, *rest):
            if argument.annotation:
                yield file, argument, ast.unparse(argument.annotation)


def fields() -> Iterator[tuple[Path, ast.Name, str]]:
    """Every field of a class: its file, itself, and the type as it is written."""
    for file in FILES:
        for node in ast.walk(parsed(file)):
            if isinstance(node, ast.ClassDef):
                for line in node.body:
                    if isinstance(line, ast.AnnAssign) and isinstance(line.target, ast.Name):
                        yield file, line.target, ast.unparse(line.annotation)


def is_any(annotation: str) -> bool:
    """Whether a type is Any, or Any and None."""
    return {part.strip() for part in annotation.split("|")} in ({"Any"}, {"Any", "None"})


def test_a_name_that_means_one_thing_has_its_type() -> None:
    typed = [(file, node.lineno, node.arg, kind) for file, node, kind in typed_parameters()]
    typed += [(file, node.lineno, node.id, kind) for file, node, kind in fields()]
    found = [f"{file}:{line}: {name}" for file, line, name, kind in typed if is_any(kind) and name in NAMES]
    assert not found, f"{len(found)} times Any where the type is known:\n" + "\n".join(found)


def test_any_is_rare() -> None:
    kinds = [(file, kind) for file, _, kind in typed_parameters()]
    any_in = Counter(file for file, kind in kinds if re.search(r"\bAny\b", kind))
    share = any_in.total() / len(kinds)
    most = "\n".join(f"{count} {file}" for file, count in any_in.most_common(20))
    assert share <= MOST_ANY, f"Any on {share:.1%} of {len(kinds)} parameters:\n{most}"


def test_a_module_is_read_in_one_sitting() -> None:
    lengths = {file: len((TRAINING / file).read_text(encoding="utf-8").splitlines()) for file in FILES}
    found = [f"{file}: {lines} lines" for file, lines in lengths.items() if lines > LONGEST_MODULE]
    assert not found, "\n".join(found)


def test_a_function_fits_on_a_screen() -> None:
    lengths = {f"{file}: {node.name}": node.end_lineno - node.lineno + 1 for file, node in functions()}
    found = [f"{name}: {lines} lines" for name, lines in lengths.items() if lines > LONGEST_FUNCTION]
    found = [line for line in found if not line.startswith(ONE_TABLE)]
    assert not found, "\n".join(found)
