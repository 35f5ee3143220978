"""From a Hugging Face folder to GGUF files, with llama.cpp's own converter and quantiser.

Both run in a process of their own (conversion_worker.py): a crash of llama.cpp must not take the run with it, and the
memory they took is given back. Nothing is downloaded. A file appears whole or not at all.
"""

from __future__ import annotations

import errno
import json
import math
import re
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import cast

from training.errors import MachineError, RunError, UserError
from training.settings.names import NEED_IMPORTANCE_MATRIX, QUANTISATIONS
from training.system import files, foreign_json, forkserver, io_errors, shell, temporary, threads
from training.to_gguf import converter_traceback
from training.to_gguf.conversion_worker import DONE

METHODS = (*QUANTISATIONS, *NEED_IMPORTANCE_MATRIX)
CONVERTER = Path(sys.prefix) / "llama.cpp" / "convert_hf_to_gguf.py"
WORKER = Path(__file__).with_name("conversion_worker.py")
# What the converter writes -> bytes a weight.
OUTTYPES = {"f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}
# The methods whose smallest tensors are of another type than their name says (src/llama-quant.cpp)
SMALLEST = {"iq3_m": "IQ3_S", "iq3_xs": "IQ3_XXS", "iq3_xxs": "IQ2_S", "iq2_m": "IQ2_S", "iq2_s": "IQ2_XS"}
SCRATCH = 1 << 24  # less free than this after a failure means that the disk was full

Pairs = Mapping[str, bool | int | str]  # of a GGUF file's metadata
Progress = Callable[[float], None]  # is told the part that is done, from 0 to 1


@dataclass(frozen=True)
class Quantised:
    """A quantised file. `types`: how many tensors have each type; `fallbacks`: those whose rows did not fit the type
    that the method wanted, as "Q4_K -> Q5_0": count. `fell_back` is their sum, of `tensors`."""

    path: Path
    method: str
    size: int  # bytes
    tensors: int
    types: dict[str, int]
    fell_back: int
    fallbacks: dict[str, int]
    seconds: float


def to_gguf(
    folder: Path, out: Path, outtype: str = "f16", progress: Progress | None = None, pairs: Pairs | None = None
) -> Path:
    """Convert a model folder (config.json, *.safetensors, tokenizer files) to `out`. `outtype` is one of OUTTYPES.

    pairs: metadata that the file must have, whatever the converter makes of the folder (reader_view.pairs).
    RunError with the converter's own reason, or with the bytes that the disk lacks.
    """
    if outtype not in OUTTYPES:
        raise ValueError(f"outtype is one of {', '.join(OUTTYPES)}, not {outtype}")
    if not CONVERTER.is_file():
        raise MachineError(f"llama.cpp's converter is not there ({CONVERTER}): run {shell.command('setup.sh')}")
    stage = f"convert to {outtype}"
    need = converted_size(folder, outtype)
    _check_room(stage, out, need)
    _convert(stage, folder, out, need, ["--outtype", outtype], pairs, progress)
    return out


def vocabulary(folder: Path, out: Path, pairs: Pairs | None = None) -> Path:
    """A GGUF file of the folder's tokenizer alone: config.json and the tokenizer's files are enough."""
    _convert("convert the tokenizer", folder, out, SCRATCH, ["--vocab-only"], pairs, None)
    return out


def _convert(
    stage: str,
    folder: Path,
    out: Path,
    need: int,
    options: Sequence[str],
    pairs: Pairs | None,
    progress: Progress | None,
) -> None:
    with files.whole_file(out, shared=True) as partial, temporary.folder("pairs") as beside:
        wanted = beside / "pairs.json"
        wanted.write_text(json.dumps(dict(pairs or {})), encoding="utf-8")
        arguments = [folder.absolute(), "--outfile", partial.absolute(), *options, *_model_name(folder)]
        work(stage, out, need, ["convert_with", wanted, CONVERTER, *arguments], progress)
        check_written(stage, partial)


# The files that _model_name looks into.
_NAMED_BY = {"config.json": {}, "tokenizer.json": {"added_tokens": foreign_json.OBJECTS}}


def _model_name(folder: Path) -> tuple[str, ...]:
    """The converter's option for the name in the file, which matters for Phi-3: its markers take the white space after them.

    llama.cpp does that too, but only where the name says Phi-3 (llama-vocab.cpp); else it reads other tokens than were
    trained, one or two more after each marker.
    """
    try:
        config, tokenizer = (foreign_json.read(folder / name, kinds) for name, kinds in _NAMED_BY.items())
    except UserError:  # no tokenizer.json: the converter says what it thinks of that
        return ()
    takes = any(token.get("special") and token.get("rstrip") for token in tokenizer.get("added_tokens", ()))
    return ("--model-name", "Phi-3") if takes and config.get("model_type") == "phi3" else ()


def quantise(
    source: Path, out: Path, method: str, progress: Progress | None = None, importance: Path | None = None
) -> Quantised:
    """Quantise a 16- or 32-bit GGUF file to one of METHODS.

    importance: what importance.write made of the same model; the methods NEED_IMPORTANCE_MATRIX cannot be without.
    RunError with llama.cpp's own reason, or with the bytes that the disk lacks.
    """
    from training.llama import gguf_file

    if method not in METHODS:
        raise ValueError(f"{method} is none of {', '.join(METHODS)}")
    stage = f"quantise to {method}"
    need = least_size(source, method)
    _check_room(stage, out, need)
    started = time.monotonic()
    with files.whole_file(out, shared=True) as partial:
        arguments = ["quantise", source.absolute(), partial.absolute(), method]
        arguments += [importance.absolute()] if importance else []
        printed = work(stage, out, need, arguments, progress)
        check_written(stage, partial)
        tensors = gguf_file.read(partial).tensors
        fallbacks = _fallbacks(stage, printed, {name: tensor.kind_name for name, tensor in tensors.items()})
        size = partial.stat().st_size
    types = Counter(tensor.kind_name for tensor in tensors.values())
    return Quantised(
        path=out,
        method=method,
        size=size,
        tensors=len(tensors),
        types=dict(types.most_common()),
        fell_back=sum(fallbacks.values()),
        fallbacks=fallbacks,
        seconds=round(time.monotonic() - started, 1),
    )


# ---- sizes -------------------------------------------------------------------------------------------------------


def converted_size(folder: Path, outtype: str = "f16") -> int:
    """Bytes that the converter will write for the weights in `folder`, to within a few per cent."""
    from training.base_model import safetensors_file

    count = sum(tensor.rows * tensor.width for tensor in safetensors_file.tensors(folder, "convert").values())
    return int(count * OUTTYPES[outtype])


def least_size(source: Path, method: str) -> int:
    """Bytes that a GGUF file takes at least when quantised: every weight in the smallest type that the method uses."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    from training.llama import gguf_file

    name = SMALLEST.get(method, method.upper())
    name = name if name in GGMLQuantizationType.__members__ else re.sub(r"_[SML]$|_MOE$", "", name)
    block, size = GGML_QUANT_SIZES[GGMLQuantizationType[name]]
    return sum(math.prod(t.shape) * size // block for t in gguf_file.read(source).tensors.values())


def _check_room(stage: str, out: Path, need: int) -> None:
    free = shutil.disk_usage(out.parent).free
    if free < need:
        raise RunError(stage, f"the disk is full: {out} needs {need:,} bytes, {free:,} are free")


# ---- the worker --------------------------------------------------------------------------------------------------


def work(stage: str, out: Path, need: int, arguments: Sequence[object], progress: Progress | None) -> list[str]:
    """Run conversion_worker.py; gives the lines it printed. RunError when it fails, whatever it died of."""
    process = forkserver.popen(WORKER, arguments, extra=threads.variables())
    printed: list[str] = []
    with process:
        try:
            # Of either kind of process it is a buffered pipe.
            for line in _lines(cast(BufferedReader, process.stdout)):
                printed.append(line)
                share = _share(line)
                if progress and share is not None:
                    progress(share)
            code = process.wait()
        except BaseException:  # interrupted, or progress() failed: nobody waits for the result any more
            process.kill()
            raise
    if code or DONE not in printed:
        free = shutil.disk_usage(out.parent).free
        if free < SCRATCH or any("No space left on device" in line for line in printed):
            if io_errors.out_of_inodes(out.parent):
                raise RunError(stage, io_errors.told(OSError(errno.ENOSPC, ""), out))
            raise RunError(stage, f"the disk is full: {out} needs {need:,} bytes, {free:,} are free")
        if refused := io_errors.quoted(printed):
            at = "" if refused.filename else f"at work on {out}: "
            raise RunError(stage, f"{at}{io_errors.told(refused)}")
        raise RunError(stage, reason(printed, code))
    return printed


def _lines(stream: BufferedReader) -> Iterator[str]:
    """Lines as they come; a carriage return ends one too, so that a progress bar is heard of while it moves."""
    rest = b""
    while block := stream.read1(1 << 16):
        *whole, rest = re.split(rb"[\r\n]", rest + block)
        yield from (line.decode("utf-8", "replace") for line in whole if line.strip())
    if rest.strip():
        yield rest.decode("utf-8", "replace")


def _share(line: str) -> float | None:
    """How much is done, from the quantiser's "[  3/ 272] name ..." or the converter's "Writing:  45%|..."."""
    if found := re.match(r"\[ *(\d+)/ *(\d+)\]", line):
        return int(found[1]) / int(found[2])
    if found := re.match(r"Writing: +(\d+)%", line):
        return int(found[1]) / 100
    return None


def _fallbacks(stage: str, printed: Sequence[str], kinds: Mapping[str, str]) -> dict[str, int]:
    """How many tensors fell back, by "wanted -> got": as the quantiser said it, held against the types in the file."""
    said = re.compile(r"warning: (\S+) .*required for type +(\S+)\).*-> falling back to +(\S+)")
    found: Counter[str] = Counter()
    for line in printed:
        if match := said.match(line):
            name, wanted, got = match[1], match[2].upper(), match[3].upper()
            if kinds.get(name) != got:
                raise RunError(stage, f"{name} should be {got} and is {kinds.get(name)} in the file")
            found[f"{wanted} -> {got}"] += 1
    return dict(found.most_common())


def check_written(stage: str, partial: Path) -> None:
    """RunError where a file is not there, or is empty, of which llama.cpp has said that it was written."""
    if not partial.is_file():
        raise RunError(stage, f"llama.cpp has written {partial}, and it is not there: has another program removed it?")
    if not partial.stat().st_size:
        raise RunError(stage, f"llama.cpp has written {partial}, and it is empty: has another program emptied it?")


# What the converter or quantiser prints -> what it means. The first that is found anywhere is told.
MEANINGS = (
    (r"Model (\S+) is not supported", "llama.cpp cannot convert the architecture {0}"),
    (
        r"BPE pre-tokenizer was not recognized",
        "llama.cpp's converter does not know this tokenizer; are the folder's tokenizer files the base model's own?",
    ),
    (
        r"Can not map tensor '([^']+)'",
        "the tensor {0} has no place in a GGUF file; are the weights quantised or of another architecture?",
    ),
    (r"Refused: (.+)", "{0}"),
    (r"FileNotFoundError: \[Errno 2\] [^:]*: '([^']+)'", "{0} is not there (any more)"),
    (r"No module named '([^']+)'", "the Python package {0} is missing: run {setup}"),
    (r"MemoryError|Cannot allocate memory|std::bad_alloc", "not enough memory"),
    (r"failed to quantize: (.+)", "llama.cpp: {0}"),
)


def reason(printed: Sequence[str], code: int) -> str:
    """Why the worker failed, in one line: what is known to be meant, or the last thing said that is not a traceback."""
    if refused := converter_traceback.refused_tokenizer(printed):
        return refused
    for pattern, meaning in MEANINGS:
        for line in reversed(printed):
            if found := re.search(pattern, line):
                return meaning.format(*found.groups(), setup=shell.command("setup.sh"))
    if code == -signal.SIGKILL:
        return "it was killed, most likely because memory ran out"
    if code == -signal.SIGILL:
        return f"llama.cpp was built for another CPU (x86 needs AVX2): remove .venv and its kept build, run {shell.command('setup.sh')}"
    of_gdb = ("#", "[Inferior", "[New LWP", "[Thread", "warning:", "ptrace:")
    noise = (" ", "Traceback", *of_gdb)
    told = [line.strip() for line in printed if not line.startswith(noise) and _share(line) is None]
    last = told[-1] if told else "it printed nothing"
    if not code:
        return f"it ended before its work was done; it printed last: {last}"
    how = f"signal {-code}" if code < 0 else f"code {code}"
    return f"llama.cpp ended with {how}; it printed last: {last}"
