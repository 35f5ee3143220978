"""Readers of the settings whose text is more than a number, a word or a path: models, templates, modules, devices.

Each takes what was given and the setting's rule, and raises ValueError with what would be allowed (rules.py).
"""

from __future__ import annotations

import codecs
import re
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from training.errors import UserError
from training.settings import column_names, hub_names, ini_file, names, rules
from training.settings import data_files as files_of_rows
from training.settings.rules import Given, Rule
from training.system import paths


def base_model(given: Given, rule: Rule) -> str:
    """[Model] BASE_MODEL_NAME: a path becomes absolute, any other name (Hub id, ms:..., Ollama tag, embedded/...) stays."""
    name = given.text.strip()
    if not name or name in ("none", "None", "null"):
        raise ValueError("must name a model: a Hub id, a folder, a .gguf file or an Ollama tag")
    if name.startswith("embedded/") and name != rule.default:
        raise ValueError(f"the only embedded model is {rule.default}")
    if re.match("https?://", name):
        raise ValueError(f"is an address; write {_on_the_page(name) or 'the Hub id, such as Qwen/Qwen3-0.6B'}")
    if hub_names.is_one(name):
        return hub_names.model(name)
    if is_path(name) or (name != rule.default and _is_there(given.folder / name)):
        return str(_named_now(rules.absolute_path(Given(name, given.folder), rule)))
    if not re.fullmatch(r"[A-Za-z0-9_.:/\-]+", name):
        raise ValueError("is neither a Hub id (letters, digits, - _ . and one /) nor an existing folder or .gguf file")
    if name.count("/") > 1 and ":" not in name:
        raise ValueError(
            f"no such folder ({ini_file.shown(given.folder / name)}); a Hub id has one / only, as in Qwen/Qwen3-0.6B"
        )
    return name


def _on_the_page(address: str) -> str:
    """The name of the model that a hub's page shows."""
    name = hub_names.meant(address)
    return hub_names.model(name) if name and "/datasets/" not in address else ""


def _named_now(path: Path) -> Path:
    """A path through the link `latest` by the run that it names: as soon as a run begins, it names that one."""
    with suppress(OSError):
        for part in (path, *path.parents):
            if part.name == "latest" and part.is_symlink():
                return part.resolve() / path.relative_to(part)
    return path


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # too long a name, or a folder that may not be looked into
        return False


def is_path(name: str) -> bool:
    """Whether a model's name can only be a path."""
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.lower().endswith(".gguf")


# Of several templates that a model brings along, those that transformers knows by name.
OWN_TEMPLATES = ("default", "tool_use", "rag")


def chat_template(given: Given, rule: Rule) -> str:
    """[Model] CHAT_TEMPLATE: auto, the name of one that comes with this project or of one of the model's own, or a Jinja
    file, as absolute path."""
    text = given.text.strip()
    if text in OWN_TEMPLATES:
        return text
    known = ("auto", *sorted(path.stem for path in paths.CHAT_TEMPLATES.glob("*.jinja")))
    if text.lower() in known:
        return text.lower()
    name = text.removeprefix("@")
    if name and (name != text or "/" in name or "." in name or _is_there(given.folder / name)):
        return str(rules.absolute_path(Given(name, given.folder), rule))
    raise ValueError(f"is neither one of {', '.join(known)} nor a Jinja file{names.did_you_mean(text, known)}")


def prompt_template(given: Given, rule: Rule) -> str | None:
    """[Dataset] PROMPT_TEMPLATE: free text from which the template for answering follows (prompt_template.py)."""
    from training.settings import prompt_template

    text = rules.optional_text(given, rule)
    try:
        if text is not None:
            prompt_template.parse(text)
    except UserError as error:
        raise ValueError(str(error).removeprefix(f"{prompt_template.WHERE}: ")) from None
    return text


def columns(given: Given, rule: Rule) -> str | None:
    """[Dataset] COLUMNS: `field: column` with commas between; a column's name with a comma in it stands in quotes."""
    text = rules.optional_text(given, rule)
    if text is not None:
        try:
            column_names.parse(text)
        except UserError as error:
            raise ValueError(str(error)) from None
    return text


def encoding(given: Given, rule: Rule) -> str:
    """[Dataset] ENCODING: auto, or an encoding of text that Python knows, by any of its names."""
    word = given.text.strip().lower()
    if word in ("", "auto"):
        return "auto"
    try:
        known = codecs.lookup(word)
    except (LookupError, UnicodeError):
        raise ValueError(
            "is no encoding that is known; auto, utf-8, utf-16, gbk, big5, shift_jis, euc-kr, cp1251, cp1252 and others are"
        ) from None
    # Python's own mark for what turns text into text or bytes into bytes (rot13, zip).
    if not getattr(known, "_is_text_encoding", True) or word in NO_FILES:
        raise ValueError("is no encoding of text files")
    return word


NO_FILES = ("idna", "punycode", "unicode_escape", "raw_unicode_escape", "undefined", "mbcs", "oem")


def data_files(given: Given, rule: Rule) -> Path:
    """[Dataset] DATASET_FILE: one file, or several with commas between them, each with its share (data_files.py).

    A file is a path, which becomes absolute, or the name of a data set on a hub.
    """
    if not files_of_rows.is_list(given.text) or not files_of_rows.is_list(str(rules.absolute_path(given, rule))):
        return _file_or_name(given, rule)
    named = (
        replace(part, path=_file_or_name(Given(str(part.path), given.folder), rule))
        for part in files_of_rows.parts(given.text)
    )
    return Path(", ".join(part.written() for part in named))


def held_out_file(given: Given, rule: Rule) -> Path | None:
    """[Dataset] VALIDATION_FILE and TEST_FILE: a file, or the name of a data set on a hub; or None."""
    return None if rules.is_none(given) else _file_or_name(given, rule)


def _file_or_name(given: Given, rule: Rule) -> Path:
    if hub_names.is_one(given.text):
        return Path(hub_names.parse(given.text).written())
    return rules.absolute_path(given, rule)


def replay_file(given: Given, rule: Rule) -> str:
    """[Dataset] REPLAY_FILE: general, a file of rows, as absolute path, or the name of a data set on a hub."""
    text = given.text.strip()
    return text.lower() if text.lower() == rule.default else str(_file_or_name(given, rule))


def model_name(given: Given, rule: Rule) -> str:
    """[Model] NEW_MODEL_NAME: what Ollama takes as a name."""
    name = given.text.strip()
    names.check_model_name(name)
    if len(name) > 200:  # with its ending it must fit into the 255 bytes of a file name
        raise ValueError(f"has {len(name)} characters; files are named after it, so 200 is the most")
    return name


def quantisations(given: Given, rule: Rule) -> tuple[str, ...]:
    """[Quantization] QUANTIZATION_METHOD: llama.cpp's names in lower case, each at most once."""
    methods = tuple(names.quantisation(name) for name in rules.name_list(given, rule))
    return rules.name_list(Given(",".join(methods), given.folder), rule)


def modules(given: Given, rule: Rule) -> tuple[str, ...]:
    """[LoRA] TARGET_MODULES: module names, or all-linear alone. Whether the model has them is known later."""
    modules = rules.name_list(given, rule)
    if "all-linear" in modules and len(modules) > 1:
        raise ValueError("all-linear stands alone: it means every linear layer")
    for name in modules:
        if name != "all-linear" and not re.fullmatch(r"[A-Za-z0-9_]+(\.[A-Za-z0-9_]+)*", name):
            raise ValueError(f"{' '.join(name.split())[:80]} is not the name of a module, such as q_proj")
    return modules


def device(given: Given, rule: Rule) -> str:
    """[Hardware] DEVICE: one of the rule's words, or one card by its number, such as cuda:1."""
    word = given.text.strip().lower()
    if word in ("gpu", "nvidia"):
        raise ValueError("write cuda")
    return word if re.fullmatch(r"(cuda|xpu):[0-9]{1,2}", word) else rules.one_word(given, rule)


def address(given: Given, rule: Rule) -> str | None:
    """[Hardware] MAIN_PROCESS_ADDRESS: host or host:port, or None."""
    if rules.is_none(given):
        return None
    match = re.fullmatch(r"([A-Za-z0-9.\-]+|\[[0-9A-Fa-f:.]+\])(?::([0-9]{1,5}))?", given.text.strip())
    if not match or (match[2] and not 1 <= int(match[2]) <= 65535):
        raise ValueError("expected host or host:port, such as 10.0.0.5:29500")
    return match[0]


def host(given: Given, rule: Rule) -> str:
    """[Service] HOST: an address of this machine, or a name of it."""
    text = given.text.strip()
    if not re.fullmatch(r"[A-Za-z0-9.\-]+|(?=(?:[^:]*:){2})[0-9A-Fa-f:.]+", text):
        raise ValueError("expected an address such as 127.0.0.1 or 0.0.0.0, without a port")
    return text


def folders(given: Given, rule: Rule) -> tuple[str, ...]:
    """[Service] ROOTS: folders with commas between them, as absolute paths."""
    if rules.is_none(given):
        return ()
    found = [rules.absolute_path(Given(name, given.folder), rule) for name in rules.name_list(given, rule)]
    if missing := [path for path in found if not path.is_dir()]:
        raise ValueError(f"no such folder ({ini_file.shown(missing[0])})")
    return tuple(map(str, found))
