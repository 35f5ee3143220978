"""A settings file in YAML, as other tools have them: it is not read, but the INI lines that say the same are told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from training.errors import UserError
from training.settings import ini_file, other_names, rules
from training.settings.other_names import IMPLIED, MEANT, TAKEN
from training.settings.table import SECTIONS, TABLE

ENDINGS = (".yaml", ".yml")
# Of what is looked at: an alias in the file may stand for much more than there is in it.
MOST_SEEN, MOST_VALUES, DEEPEST = 10_000, 300, 10


def refused(path: Path) -> UserError:
    """The error for a YAML file, with the lines of a settings file that say what it says, as far as that is known here."""
    where = ini_file.shown(path)
    text = ini_file.read_text(path)
    try:
        import yaml
    except ImportError:  # before the set-up
        return UserError(f"{where}: is YAML; settings are read from an INI file such as config.ini")
    try:
        content = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark is not None else ""
        return UserError(f"{where}{line}: is YAML, which is not read here, and cannot be read as YAML either")
    lines = list(_lines(content))
    title = f"{where}: settings are read from an INI file such as config.ini; this one would be"
    return UserError(lines or ["# (nothing in it is a setting here)"], title)


def _lines(content: object) -> Iterator[str]:
    found: dict[str, str] = {}
    others = []
    for number, (path, value) in enumerate(_values(content)):
        if number == MOST_VALUES:
            others.append("and more, which was not looked at")
            break
        made = _settings(path, value)
        if made is None or any(key in found for key, _ in made):
            others.append(".".join(path))
        else:
            found.update(made)
    for section in SECTIONS:
        keys = [item for item in TABLE.values() if item.section == section and item.name in found]
        if keys:
            yield f"[{section}]"
            for item in keys:
                text = found[item.name]
                yield f"{item.key} = {text if item.rule.one_of else ini_file.quote(text)}".rstrip()
    if others:
        yield f"# no setting here: {ini_file.show(', '.join(others), 400)}"


def _values(content: object) -> Iterator[tuple[tuple[str, ...], object]]:
    """Every value with the names that lead to it, in their order. A list of plain values is one value."""
    left: list[tuple[tuple[str, ...], int, object]] = [((), 0, content)]
    for _ in range(MOST_SEEN):
        if not left:
            return
        path, depth, value = left.pop()
        if isinstance(value, dict):
            inner = [((*path, str(name)), depth + 1, part) for name, part in value.items()]
        elif isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
            inner = [(path, depth + 1, part) for part in value]
        else:
            inner = []
            if path:
                yield path, value
        left += reversed(inner if depth < DEEPEST else [])


def _settings(path: tuple[str, ...], value: object) -> list[tuple[str, str]] | None:
    """What a value sets: by its own name and its parent's together (model: name:), else by its own (lora_config: r:)."""
    text = rules.write(tuple(map(str, value)) if isinstance(value, list) else value)
    for name in ("-".join(path[-2:]), path[-1]):
        name = other_names.plain(name)
        if name in TAKEN or name in IMPLIED:
            try:
                return other_names.settings_of(name, text)
            except ValueError:
                return None
        if name in MEANT:
            return [(MEANT[name], text)]
    return None
