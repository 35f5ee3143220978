"""A small model of the same architecture, converted and quantised to see whether that can be done."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.errors import MachineError, RunError, UserError
from training.settings.names import NEED_IMPORTANCE_MATRIX
from training.system import foreign_code, forkserver, temporary
from training.system.parent_watch import end_with_parent
from training.to_gguf.conversion import quantise, to_gguf, vocabulary


def ready(
    config: Mapping[str, object] | None = None,
    tokenizer: Path | None = None,
    method: str = "q4_k_m",
    keep: Path | None = None,
) -> dict[str, Any]:
    """Execute converter and quantiser before hours are spent on training; gives the figures, for the log and report.

    They work on a random model of two layers, made in a temporary folder: of the architecture that `config` (a
    config.json) describes and with the tokenizer files in the folder `tokenizer`, else a Llama with a tokenizer of its
    own. UserError when llama.cpp does not know the architecture or the tokenizer; MachineError, with what would help,
    when its tools do not work at all. Where only making a small model of this architecture went wrong, the Llama stands
    in for it, and "note" in the record says why. "window" is there where llama.cpp does not compute the model's sliding
    window, and says how long it is. keep: where a GGUF file with the model's own tokenizer is left, if one
    can be made.
    """
    note = ""
    try:
        if config is not None and tokenizer is not None:
            try:
                return _trial(config, tokenizer, method, keep)
            except RunError as error:
                if any(words in error.message for words in UNKNOWN):
                    raise UserError(f"this model cannot become a GGUF file: {error.message}; choose another") from error
                note = error.message
            except OSError:
                raise
            except Exception as error:  # transformers' configurations raise what they like at values they do not fit
                note = f"{type(error).__name__}: {error}"
            if keep is not None:
                with suppress(RunError):  # the note says why there is none
                    vocabulary(tokenizer, keep)
        return _trial(None, None, method) | ({"note": note} if note else {})
    except RunError as error:
        raise MachineError(f"a trial of llama.cpp's converter and quantiser failed: {error}") from error
    except OSError as error:
        raise MachineError(f"no trial of the converter: {error}; TMPDIR names another place") from error


def _trial(
    config: Mapping[str, object] | None, tokenizer: Path | None, method: str, keep: Path | None = None
) -> dict[str, Any]:
    from training.to_gguf import trial_model

    started = time.monotonic()
    with temporary.folder("ready") as folder:
        architecture = trial_model.make(folder / "model", config, tokenizer)
        made = time.monotonic()
        f16 = to_gguf(folder / "model", folder / "trial.f16.gguf")
        converted = time.monotonic()
        matrix = folder / "importance.npz" if method in NEED_IMPORTANCE_MATRIX else None
        if matrix:
            from training.to_gguf import importance

            importance.write(folder / "model", f16, range(100), matrix)
        quantised = quantise(f16, folder / "trial.gguf", method, importance=matrix)
        size = f16.stat().st_size
        window = (config or {}).get("sliding_window")
        ignored = isinstance(window, int) and trial_model.ignores_window(folder / "model", f16)
        if keep is not None:
            shutil.move(f16, keep)
        return {
            "architecture": architecture,
            "method": method,
            "f16_bytes": size,
            "quantised_bytes": quantised.size,
            "types": quantised.types,
            "make_seconds": round(made - started, 1),
            "convert_seconds": round(converted - made, 1),
            "quantise_seconds": quantised.seconds,
        } | ({"window": window} if ignored else {})


@contextmanager
def trial(
    config: Mapping[str, object], tokenizer: Path, methods: Sequence[str] = ()
) -> Iterator[Callable[[], dict[str, Any]]]:
    """`ready` in a process of its own, while the caller goes on; gives the function that waits for its figures.

    Of `methods` one that needs an importance matrix is tried, if there is one, because that is what may not be possible.
    Among the figures is "vocabulary": a GGUF file with the model's tokenizer, there until the block is left, or None.

    The process is ended when the block is left, so that whoever finds a mistake meanwhile need not wait for it.
    """
    with temporary.folder("trial") as folder:
        described = folder / "config.json"
        described.write_text(json.dumps(config), encoding="utf-8")
        method = next((name for name in methods if name in NEED_IMPORTANCE_MATRIX), "q4_k_m")
        kept = folder / "vocabulary.gguf"
        child = forkserver.popen(Path(__file__), [described, tokenizer, method, kept], {"TMPDIR": str(folder)})

        def result() -> dict[str, Any]:
            printed = child.stdout.read().decode("utf-8", "replace").strip().splitlines()
            if code := child.wait():
                kind = UserError if code == UserError.exit_code else MachineError
                raise kind((printed or ["a trial of llama.cpp's converter failed"])[-1])
            figures: dict[str, Any] = json.loads(printed[-1])
            return figures | {"vocabulary": kept if kept.is_file() else None}

        try:
            yield result
        finally:
            forkserver.end(child)


UNKNOWN = (
    "cannot convert the architecture",
    "does not know this tokenizer",
    "none can be made for the architecture",
    "cannot write this tokenizer",
)  # no trial of another kind would help


def main(config: str, tokenizer: str, method: str, keep: str) -> int:
    """The process of `trial`. Its last line is the figures as JSON, or the reason, with exit 2 or 3."""
    foreign_code.keep_out()
    end_with_parent()
    try:
        described = json.loads(Path(config).read_text(encoding="utf-8"))
        print(json.dumps(ready(described, Path(tokenizer), method, Path(keep))))
        return 0
    except (UserError, MachineError) as error:
        print(" ".join(str(error).split()))
        return error.exit_code


if __name__ == "__main__":
    raise SystemExit(main(*sys.argv[1:]))
