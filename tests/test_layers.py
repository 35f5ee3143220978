"""Imports point down: a room uses only the rooms below it, through their faces or by the names of their modules.

The floors are those that training/__init__.py tells of. Imports inside functions and for type checkers count, too.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import training

ROOT = Path(__file__).resolve().parents[1]
TRAINING = ROOT / "training"
FILES = sorted(path.relative_to(TRAINING) for path in TRAINING.rglob("*.py"))
FLOOR = {name: int(floor) for floor, name in re.findall(r"^ +(\d+)  (\w+)  ", training.__doc__, re.M)}
ROOMS = sorted(path.parent.name for path in TRAINING.glob("*/__init__.py"))
# What runs with the system's Python, where nothing is installed.
WITHOUT_PACKAGES = {"settings", "system"}
LINES_OF_A_SCRIPT = "sys.path[0] = str(Path(__file__).resolve().parents[{}])"


@cache
def parsed(file: Path) -> ast.Module:
    return ast.parse((TRAINING / file).read_text(encoding="utf-8"))


def imports(file: Path) -> Iterator[tuple[str, str]]:
    """Everything of ours that a file imports, anywhere in it: (module, name)."""
    for node in ast.walk(parsed(file)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "training":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Import):
            assert not any(alias.name.split(".")[0] == "training" for alias in node.names), (
                f"{file}: {ast.unparse(node)}"
            )


def room(file: Path) -> str:
    """The room of a file; of a script or errors.py its own name."""
    return file.parts[0] if len(file.parts) > 1 else file.stem


def imported_file(module: str, name: str) -> Path:
    """The file that is executed for `from module import name`."""
    for parts in ([*module.split("."), name], module.split(".")):
        for path in (ROOT.joinpath(*parts).with_suffix(".py"), ROOT.joinpath(*parts, "__init__.py")):
            if path.is_file():
                return path.relative_to(TRAINING)
    raise AssertionError(f"{module} is not there")


def test_every_room_stands_on_a_floor_and_the_map_tells_of_each() -> None:
    assert set(FLOOR) >= set(ROOMS), "a room is missing in training/__init__.py"
    for file in TRAINING.glob("*.py"):
        assert file.stem == "__init__" or file.stem in FLOOR, f"{file.name} is missing in training/__init__.py"
    for name in FLOOR:
        assert (TRAINING / name).is_dir() or (TRAINING / f"{name}.py").is_file(), f"training/__init__.py: no {name}"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_room_imports_only_what_stands_below_it(file: Path) -> None:
    here = room(file)
    if here == "__init__":
        assert {module for module, _ in imports(file)} == {
            "training.api"
        }  # for type checkers; api.py is loaded when asked for
        return
    for module, name in imports(file):
        there = module.split(".")[1] if "." in module else name
        below = there == here or FLOOR[there] < FLOOR[here]
        assert below, (
            f"{file}: from {module} import {name}: {there} stands on floor {FLOOR[there]}, {here} on {FLOOR[here]}"
        )


@pytest.mark.parametrize("file", FILES, ids=str)
def test_outside_a_room_one_imports_from_its_face_or_a_module_of_it(file: Path) -> None:
    """Classes, constants and functions come from the face; what is too special for that is asked of its module."""
    for module, name in imports(file):
        parts = module.split(".")
        if len(parts) == 3 and parts[1] != room(file) and (TRAINING / parts[1]).is_dir():
            face = parsed(Path(parts[1], "__init__.py"))
            handed_on = {
                alias.asname or alias.name
                for node in face.body
                if isinstance(node, ast.ImportFrom)
                for alias in node.names
            }
            assert name not in handed_on, f"{file}: from {module} import {name}: training.{parts[1]} hands it on"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_private_name_stays_in_its_file(file: Path) -> None:
    names = {name for _, name in imports(file)}
    assert not [name for name in names if name.startswith("_")], f"{file} imports private names"
    bound = {
        alias.asname or alias.name: (node.module, alias.name)
        for node in ast.walk(parsed(file))
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    for node in ast.walk(parsed(file)):
        if (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.attr.startswith("_")
            and node.value.id in bound
        ):
            module, name = bound[node.value.id]
            ours = (module or "").split(".")[0] == "training" and (ROOT.joinpath(*module.split("."), name)).with_suffix(
                ".py"
            ).is_file()
            assert not ours, f"{file}:{node.lineno}: {ast.unparse(node)}"


def test_no_file_imports_itself_by_way_of_others() -> None:
    """Not even inside functions. A face is left out: what it hands on counts as its file."""
    below = {
        file: {imported_file(*pair) for pair in imports(file)} - {file} for file in FILES if file.name != "__init__.py"
    }
    for file, found in below.items():
        handed_on = set()
        for face in [path for path in found if path.name == "__init__.py" and room(path) != room(file)]:
            handed_on |= {imported_file(*pair) for pair in imports(face)}
        below[file] = {path for path in found | handed_on if path.name != "__init__.py"}
    done: set[Path] = set()

    def visit(file: Path, way: tuple[Path, ...]) -> None:
        assert file not in way, " -> ".join(map(str, (*way[way.index(file) :], file)))
        if file not in done:
            for lower in sorted(below.get(file, ())):
                visit(lower, (*way, file))
            done.add(file)

    for file in sorted(below):
        visit(file, ())


@pytest.mark.parametrize("name", ROOMS)
def test_a_face_hands_on_names_and_defines_nothing(name: str) -> None:
    body = parsed(Path(name, "__init__.py")).body
    docstring, rest = body[0], body[1:]
    assert isinstance(docstring, ast.Expr) and isinstance(docstring.value, ast.Constant), (
        f"{name} says not what it is for"
    )
    for node in rest:
        listed = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
        assert listed or isinstance(node, ast.ImportFrom) and node.module.startswith(f"training.{name}."), ast.unparse(
            node
        )


@pytest.mark.slow
@pytest.mark.parametrize("name", ROOMS)
def test_a_face_loads_no_torch(name: str) -> None:
    """Whoever starts a program waits for it; and torch must be told of its threads before it is loaded."""
    heavy = ("torch", "transformers", "trl", "peft", "datasets")
    code = f"import sys, training.{name}; print(*[name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(WITHOUT_PACKAGES))
def test_a_face_below_the_settings_needs_no_packages(name: str) -> None:
    """A wrong setting is told with the system's Python, before anything is installed."""
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import training.{name}"
    done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_tests_import_from_no_other_tests() -> None:
    """What several of them need lies in tests/support/."""
    for file in sorted((ROOT / "tests").rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, (ast.Import, ast.ImportFrom)) else []
            if isinstance(node, ast.ImportFrom):
                names = [f"{node.module}.{name}" for name in names]
            found = [name for name in names if re.match(r"tests\.(?!support\b)", name)]
            assert not found, f"{file.relative_to(ROOT)}: {ast.unparse(node)}"


def test_scripts_put_the_root_first_on_the_path_in_one_wording() -> None:
    """As scripts their own folder would stand first, and shadow installed packages. No helper can say it before that."""
    for file in FILES:
        for node in parsed(file).body:
            if isinstance(node, ast.If) and "sys.path" in ast.unparse(node):
                expected = LINES_OF_A_SCRIPT.format(len(file.parts))
                assert expected in ast.unparse(node), f"{file}: {ast.unparse(node)}"
