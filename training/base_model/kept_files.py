"""Which files of a model folder belong to the model: what may be read, copied and so given away, and what may not.

A model folder comes from anywhere, and `merged/` is what people upload. So a copy holds what is on a list, never what
merely lies there. A link may lead to the same file elsewhere (a shared store, the Hub's cache), but under another name
it could be anything of this machine: a private key that is called LICENSE.
"""

from __future__ import annotations

import shutil
import stat
from fnmatch import fnmatchcase
from pathlib import Path

from training.system import foreign_code, foreign_json
from training.system.foreign_json import Damaged

TOKENIZER = (
    *("tokenizer.json", "tokenizer.*.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.*", "merges.txt", "*.model", "tokenizer.model.*", "*.tiktoken", "tekken.json"),
    *("chat_template.jinja", "chat_template.json"),
)
# A model that sees pictures or hears is read by means of these.
PROCESSOR = ("processor_config.json", "preprocessor_config.json", "video_preprocessor_config.json")
CONFIG = ("config.json", "generation_config.json")
# What a licence asks to be handed on.
TERMS = ("licen[cs]e*", "copying*", "notice*", "use_policy*")
CODE = ("*.py",)
WEIGHTS = ("*.safetensors",)
INDEX = ("*.safetensors.index.json",)
TEMPLATES = "additional_chat_templates"  # transformers reads all *.jinja in it
TERMS_SIZE = 1 << 20  # bytes of a licence at most
LINKS = 40  # one after another, as many as Linux follows

KINDS = (
    (stat.S_ISFIFO, "a named pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that a tokenizer is made from, with its code where that is trusted."""
    return _plain(folder, TOKENIZER + (CODE if foreign_code.trusted() else ()))


def kept(folder: Path) -> list[Path]:
    """The files of a model folder, beside its weights, that go into a copy of it."""
    files = _plain(folder, CONFIG + TOKENIZER + PROCESSOR + (CODE if foreign_code.trusted() else ()))
    terms = [file for file in _plain(folder, TERMS) if file.stat().st_size <= TERMS_SIZE]
    return sorted({*files, *terms})


def left_out(folder: Path) -> list[str]:
    """The files that a copy is without, but for those that nobody misses: for the line that says so."""
    there = {*kept(folder), *_plain(folder, WEIGHTS + INDEX)}
    others = (file for file in folder.iterdir() if file not in there and not file.is_dir())
    return sorted(file.name for file in others if not _of_the_page(file.name))


def problems(folder: Path) -> list[str]:
    """Why a model folder must not be read: what is no file, and links that lead elsewhere or nowhere."""
    read = CONFIG + TOKENIZER + PROCESSOR + INDEX + (CODE if foreign_code.trusted() else ())
    found = pipes(folder)
    for file in _entries(folder):
        name = file.relative_to(folder)
        if not file.is_symlink() or not (_matches(file.name, read + WEIGHTS) or file.parent != folder):
            continue
        if not file.exists():
            found.append(f"{name} is a link to {file.readlink()}, which is not there; download the model again")
        elif not _matches(file.name, WEIGHTS) and leads_elsewhere(file):
            found.append(
                f"{name} is a link out of the folder, to a file with another name ({file.readlink()}), which would be "
                "copied into what is made of the model: put the file itself there"
            )
    outside = (name for name in _other_tokenizers(folder) if Path(name).name != name)
    return [*found, *(f"tokenizer_config.json takes the tokenizer from another folder ({name})" for name in outside)]


def pipes(path: Path) -> list[str]:
    """What in a folder is neither a file nor a folder, or a path that is neither itself: to open it might never end."""
    found = ((file, _special(file)) for file in (_entries(path) if path.is_dir() else [path]))
    return [f"{file.name} is {kind} and no file; take it away" for file, kind in found if kind]


def _special(file: Path) -> str:
    """What a path is that is neither a file nor a folder ("a named pipe"); empty for files, folders and nothing."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return ""
    return next((word for kind, word in KINDS if kind(mode)), "")


def leads_elsewhere(file: Path) -> bool:
    """Whether a link, or one that it leads to, goes to a file of another name in another folder.

    The Hub's cache is made of such links, from snapshots/REVISION/NAME to blobs/SHA256 of the same model: those are good.
    """
    folder = file.parent.resolve()
    at = folder / file.name
    for _ in range(LINKS):
        if not at.is_symlink():
            return False
        to = at.parent / at.readlink()
        to = to.parent.resolve() / to.name
        cached = any(up.name == "snapshots" and to.parent == up.parent / "blobs" for up in at.parents)
        if to.name != file.name and not cached and not to.is_relative_to(folder):
            return True
        at = to
    return True


def copy(source: Path, target: Path) -> None:
    """Copy a file's content. Who may not read the one may not read the other."""
    shutil.copyfile(source, target)
    keep_closed(source, target)


def keep_closed(source: Path, target: Path) -> None:
    """Take from others what they may not do with `source`, on a file that was made of it."""
    mode, allowed = stat.S_IMODE(target.stat().st_mode), stat.S_IMODE(source.stat().st_mode) | stat.S_IRWXU
    if mode & ~allowed:
        target.chmod(mode & allowed)


def _plain(folder: Path, patterns: tuple[str, ...]) -> list[Path]:
    """The files in a folder that have one of these names; nothing that is no file, no link that leads elsewhere."""
    return [
        file
        for file in sorted(folder.iterdir())
        if _matches(file.name, patterns) and file.is_file() and not leads_elsewhere(file)
    ]


def _other_tokenizers(folder: Path) -> list[str]:
    """The files that tokenizer_config.json names to be read in place of tokenizer.json."""
    file = folder / "tokenizer_config.json"
    if not file.is_file():
        return []
    try:
        names = foreign_json.read(file).get("fast_tokenizer_files")
    except Damaged:
        return []  # whoever reads it for its sake says what is wrong with it
    return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def _entries(folder: Path) -> list[Path]:
    below = folder / TEMPLATES
    return sorted([*folder.iterdir(), *(below.iterdir() if below.is_dir() else ())])


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    # ._NAME is what macOS leaves beside NAME.
    return not name.startswith("._") and any(fnmatchcase(name.lower(), pattern) for pattern in patterns)


def _of_the_page(name: str) -> bool:
    """Files that every model has beside it and nobody misses: its page, other formats of its weights, its training."""
    ends = (".md", ".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack", ".onnx", ".ckpt", ".partial", ".index.json")
    starts = (".", "adapter_", "training_args", "optimizer", "unpacked.json")
    return name.endswith((*ends, *(pattern[1:] for pattern in WEIGHTS))) or name.startswith(starts)
