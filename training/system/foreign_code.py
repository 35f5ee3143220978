"""Python code that comes with a model: it runs where TRUST_REMOTE_CODE = true allows it, and else nowhere in a process.

transformers runs such code for whoever asks, and llama.cpp's converter always asks. So the decision is not left to those
who load a model. `keep_out` stands in front of them all, in two depths:

- transformers' own question, whether the code of a model may run, gets the settings' answer, whatever the caller said.
  Where transformers knows the architecture itself, the model is loaded without its code.
- Python refuses to execute any file that lies where downloaded code lies (an audit hook), whichever library asks.

What the settings say goes to the processes that a process starts in an environment variable.
"""

from __future__ import annotations

import importlib.machinery
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from training.errors import UserError

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec

SWITCH = "FINETUNE_TRUST_REMOTE_CODE"
# In a model's JSON files: which class of its own code stands for AutoConfig, AutoTokenizer, ...
AUTO_MAP = "auto_map"
# The module that decides, and fetches and executes the code.
ASKED = "transformers.dynamic_module_utils"
QUESTION = "resolve_trust_remote_code"  # its function that decides
# Where code from outside lies before it runs: transformers' copies of it, datasets' ones, and the Hub's cache.
PLACES = re.compile(
    r"[/\\](transformers_modules|datasets_modules|(models|datasets|spaces|kernels)--[^/\\]+[/\\]snapshots)[/\\]"
)

LARGEST = 1 << 26  # bytes of a file that is read for its auto_map

_installed = False


class Refused(UserError, ValueError):
    """Code of a model was about to run. A ValueError too, as transformers' own refusal is: it goes on without, if it can."""


def trust(yes: bool) -> None:
    """What the settings say, for this process and those that it starts from now on."""
    os.environ[SWITCH] = "1" if yes else "0"
    keep_out()


def trusted() -> bool:
    """Whether the code of a model may run in this process. Not before `trust` was told so, here or in a parent."""
    return os.environ.get(SWITCH) == "1"


def handed_on() -> dict[str, str]:
    """The environment variable for a process that was prepared earlier, and so has another environment."""
    return {SWITCH: os.environ.get(SWITCH, "0")}


def keep_out() -> None:
    """Let no code of a model run in this process and its forks, unless it is `trusted`. Costs nothing: no import."""
    global _installed
    if _installed:
        return
    _installed = True
    sys.addaudithook(_refuse_places)
    sys.meta_path.insert(0, _Finder())
    if loaded := sys.modules.get(ASKED):
        original = getattr(loaded, QUESTION)
        for module in list(sys.modules.values()):  # wherever it was imported by name
            if vars(module).get(QUESTION) is original:
                _put_in(module)


def brought(folder: Path) -> list[str]:
    """What the code of a model folder is called: its Python files, and what its JSON files name in place of them."""
    files = sorted(file.name for file in folder.glob("*.py"))
    return files or sorted({name for file in folder.glob("*config.json") for name in _named(_read(file))})


def ignored(name: str, files: Sequence[str]) -> str:
    """The line that says that the code of a model is not run."""
    shown = ", ".join(files[:3]) + (f" and {len(files) - 3} more" if len(files) > 3 else "")
    return f"{name} comes with Python code of its own ({shown}), which is not run: TRUST_REMOTE_CODE = false"


def without(value: Mapping[str, object]) -> dict[str, Any]:
    """A model's JSON object without what names code: for copies of it. The object as it is where code is trusted."""
    return {key: part for key, part in value.items() if key != AUTO_MAP or trusted()}


def forget(file: Path) -> None:
    """Take out of a copied file what names code, which was not copied with it. Any other file stays byte for byte."""
    before = _read(file)
    after = without(before)
    if after != before:
        file.write_text(json.dumps(after, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _named(value: Mapping[str, object]) -> Iterator[str]:
    """The classes in an auto_map; of a tokenizer there are two, of which one may be null."""
    found = value.get(AUTO_MAP)
    for classes in found.values() if isinstance(found, dict) else [found]:
        for one in classes if isinstance(classes, list) else [classes]:
            if isinstance(one, str):
                yield one


def _read(file: Path) -> Mapping[str, object]:
    """A JSON file that may hold an auto_map; nothing where it is none, or no JSON."""
    if not file.name.endswith("config.json") or not file.is_file() or file.stat().st_size > LARGEST:
        return {}
    try:
        found = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


# ---- the door --------------------------------------------------------------------------------------------------------


def _put_in(module: ModuleType) -> None:
    """Let transformers' question be answered by the settings, in a module that has it by its name."""
    original: Callable[..., object] = getattr(module, QUESTION)

    def answered(
        trust_remote_code: bool | None, model_name: object, has_local_code: bool, *arguments: object, **named: object
    ) -> object:
        # None would ask on the terminal.
        wanted = not has_local_code if trust_remote_code is None else trust_remote_code
        try:
            return original(trusted() and wanted, model_name, has_local_code, *arguments, **named)
        except ValueError as error:
            raise Refused(_refusal(model_name)) from error

    setattr(module, QUESTION, answered)


def _refusal(what: object) -> str:
    return (
        f"{what} cannot be loaded without running Python code that comes with it; TRUST_REMOTE_CODE = true would run it"
    )


def _refuse_places(event: str, arguments: tuple[object, ...]) -> None:
    """The audit hook. It hears of all that Python executes: of code as `exec`, of a compiled module as `import`."""
    if event == "exec":
        file = getattr(arguments[0], "co_filename", None)
    elif event == "import":
        file = arguments[1]
    else:
        return
    if isinstance(file, str) and PLACES.search(file) and not trusted():
        raise Refused(_refusal(file))


class _Loader(importlib.machinery.SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        super().exec_module(module)
        _put_in(module)


class _Finder:
    """Finds transformers' deciding module when it is first imported, before others take its function by name."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name != ASKED:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.origin:
            spec.loader = _Loader(name, spec.origin)
        return spec
