"""Any Hugging Face folder as GGUF files:  python training/convert_to_gguf.py --model-path DIR [--quantization Q4_K_M]

The folder may come from anywhere; a run of ours is exported by export.py. Each file is proved before it appears: its
tokenizer, its predictions against transformers' (where memory allows), what quantising cost. Prints their paths, one a
line, on stdout.
"""

from __future__ import annotations

import argparse
import dataclasses
import glob
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from training.system import own_python

    own_python.use()

from loguru import logger

from training import base_model, ollama
from training.base_model import BaseModel, generation, leftovers, weights_fit
from training.checks import as_read, gguf_files, require
from training.data import ChatTemplate, chat_template, encoding
from training.data.row_texts import RowTexts
from training.errors import FinetuneError, Interrupted, MachineError, RunError, UserError
from training.evaluation import reference
from training.llama import process as llama
from training.ollama import Chat, modelfile
from training.settings import Settings, names
from training.settings.table import Dataset, Hardware, LoRA, Model, Quantization, Training
from training.system import files, foreign_code, last_net, launchers, log, paths
from training.system.plain_parser import Parser
from training.system.signals import Signals
from training.to_gguf import conversion, importance, reader_metadata
from training.to_gguf.chat import chat_of
from training.to_gguf.conversion import Pairs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

F16 = "f16"
LONGEST = 4096  # tokens of num_ctx at most: Ollama reserves memory for all of them, and models name 131072 and more
MOST_CALIBRATION = 4_000_000  # characters
FEWEST_WORDS = 200  # of a text for an importance matrix
SAMPLE = (
    "The Danube rises in the Black Forest and flows through ten countries to the sea. In 1856 a treaty opened it to the "
    "ships of all nations.\n\ndef area(width, height):\n    return width * height\n\nQuestion: which river is longer? "
    "Answer: the Volga, with 3,530 kilometres; it ends in the Caspian Sea."
)


def convert_folder(base: BaseModel, targets: dict[str, Path], calibration: str = "") -> None:
    """Make the files of `targets`, quantisation -> path, all in one folder. They appear together, proved, or not at all.

    calibration: the text that an importance matrix is made from, for the methods that need one.
    RunError naming the step or the check that failed.
    """
    with workspace(next(iter(targets.values()))) as room:
        name = targets[F16].name if F16 in targets else "model.F16.gguf"
        f16 = conversion.to_gguf(base.path, room / name, pairs=_pairs(base))
        logger.info("converted to f16: {:,} bytes", f16.stat().st_size)
        made = {method: f16 if method == F16 else room / path.name for method, path in targets.items()}
        matrix = _importance(base.path, f16, calibration, room / "importance.npz") if calibration else None
        for method, path in made.items():
            if method != F16:
                _quantise(f16, path, method, matrix if method in names.NEED_IMPORTANCE_MATRIX else None)
        _prove(base, f16, [path for method, path in made.items() if method != F16], room)
        for method, path in targets.items():
            files.sync(made[method])
            made[method].replace(path)


def _importance(folder: Path, f16: Path, text: str, out: Path) -> Path:
    ids = llama.tokenise(f16, [text], special=False)[0]
    measured = importance.write(folder, f16, ids[: importance.MOST], out)
    logger.info("importance matrix: {:,} of {:,} tokens, {:.1f} s", measured.tokens, len(ids), measured.seconds)
    return out


def _quantise(f16: Path, out: Path, method: str, matrix: Path | None) -> None:
    made = conversion.quantise(f16, out, method, importance=matrix)
    fallbacks = ", ".join(f"{count} {what}" for what, count in made.fallbacks.items())
    fell_back = f"; rows do not fit the type in {made.fell_back} of {made.tensors} tensors: {fallbacks}"
    logger.info("{}: {:,} bytes{}", method, made.size, fell_back if made.fell_back else "")


def _pairs(base: BaseModel) -> Pairs:
    """What the file must say of the model's own chat template; without one, nothing of a template."""
    tokenizer = _tokenizer(base.path)
    return reader_metadata.pairs(tokenizer, _template(base, tokenizer))


def _prove(base: BaseModel, f16: Path, others: Sequence[Path], room: Path) -> None:
    template = _template(base, _tokenizer(base.path))
    done = [gguf_files.gguf_tokenizer(f16, base.path, chat_template.samples(template) if template else ())]
    if template:
        done.append(as_read.read_as_trained(f16, base.path, template, RowTexts()))
    require(done)  # the rest would be measured on wrong tokens
    ids = llama.tokenise(f16, [SAMPLE])[0][: base.max_length or None]
    with reference.opened(base.path) as model:
        done.append(gguf_files.f16_agrees(f16, model, [ids], [1], room))
    done += [gguf_files.quantised(f16, path, [ids], [1], room) for path in others]
    for check in done:
        figures = {name: check.figures[name] for name in ("different", "mean_kl", "top1") if name in check.figures}
        said = check.skipped or ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
        logger.info("check {}: {} ({})", check.name, "passed" if check.passed else "FAILED", said)
    require(done)


@contextmanager
def workspace(beside: Path) -> Iterator[Path]:
    """A folder for unfinished files on the disk that the finished ones go to; removed at the end, or by the next call."""
    _remove_left_by_dead(beside)
    room = beside.with_name(f".{beside.name}.{os.getpid()}{files.PARTIAL}")
    try:
        room.mkdir(parents=True)
    except OSError as error:
        raise MachineError(f"{beside.parent} cannot be written: {error.strerror}; --output names another") from error
    try:
        yield room
    finally:
        shutil.rmtree(room, ignore_errors=True)


def _remove_left_by_dead(beside: Path) -> None:
    """Remove the workspaces that killed processes left for this very file; one whose process lives is in use."""
    for left in beside.parent.glob(f".{glob.escape(beside.name)}.*{files.PARTIAL}"):
        owner = left.name.removesuffix(files.PARTIAL).rpartition(".")[2]
        if owner.isdigit() and not _lives(int(owner)):
            shutil.rmtree(left, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


# ---- the Modelfile -----------------------------------------------------------------------------------------------


def _template(base: BaseModel, tokenizer: PreTrainedTokenizerBase) -> ChatTemplate | None:
    """The model's own chat template, if it has one. UserError when it is broken."""
    if not getattr(tokenizer, "chat_template", None):
        return None
    defaults = Settings(
        model=Model(),
        lora=LoRA(),
        dataset=Dataset(),
        training=Training(),
        quantization=Quantization(),
        hardware=Hardware(),
        config=base.path,
        origins={},
    )
    return chat_template.choose(base, defaults, tokenizer)


def compose(base: BaseModel, gguf: str) -> tuple[str, Chat | None, list[str]]:
    """A Modelfile for the untouched model, by its own chat template; without one it continues plain text.

    Gives the text, and the chat and the stop texts that it can be verified with. UserError when the template is broken.
    """
    tokenizer = _tokenizer(base.path)
    ends = [str(tokenizer.decode([number])) for number in generation.generation_eos(base)]
    chatting, stops = None, modelfile.stop_texts(tokenizer.eos_token or "", (), ends)
    if template := _template(base, tokenizer):
        stops = modelfile.stop_texts(template.eos, template.end_tokens, ends)
        chatting = chat_of(template, encoding.adds_bos_cached(tokenizer))
    sampling = modelfile.sampling(generation.config(base.path))
    num_ctx = min(_length(base) or LONGEST, LONGEST)
    text = ollama.compose(gguf, chatting, stops=stops, num_ctx=num_ctx, sampling=sampling)
    return text, chatting, stops


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    return base_model.load_tokenizer(folder)


def _length(base: BaseModel) -> int | None:
    """Tokens that the model takes; a model that also sees pictures says it inside text_config."""
    return base.max_length or (base.config.get("text_config") or {}).get("max_position_embeddings")


# ---- the command line --------------------------------------------------------------------------------------------


def main(argv: Sequence[str]) -> int:
    """Convert what the arguments ask for; errors go to the log, the paths of the files to stdout."""
    arguments = parser().parse_args(argv)
    foreign_code.trust(arguments.trust_remote_code)
    stdout = log.claim_stdout()
    launchers.leave_out()
    signals = Signals()
    signals.install()
    log.start()
    launchers.tell()
    try:
        for path in run(arguments):
            log.say_path(stdout, path)
        return 0
    except (FinetuneError, Interrupted) as error:
        signals.delivered()
        logger.error("{}", error)
        return error.exit_code
    except OSError as error:
        logger.error("{}", error)
        return MachineError.exit_code
    except Exception as error:
        told = last_net.caught(error)
        logger.error("{}", told)
        return told.exit_code


def run(arguments: argparse.Namespace) -> list[Path]:
    """Check everything that can be known before the work, then do it; gives the files made."""
    methods = _methods(arguments.quantization)
    calibration = _calibration(arguments.calibration, methods)
    base = _locate(arguments.model_path, arguments.trust_remote_code)
    name = arguments.model_name or base.path.name
    if arguments.model_name or arguments.create_modelfile:
        try:
            names.check_model_name(name)
        except ValueError as error:
            raise UserError(f"--model-name {name}: {error}") from None
    targets = _targets(arguments.output, base.path, name.replace("/", "-").replace(":", "-"), methods)
    first = next(iter(targets.values()))
    # Refused before the work, if at all.
    composed = compose(base, first.name) if arguments.create_modelfile else None
    with leftovers.kept_out(base.path) as folder:
        convert_folder(dataclasses.replace(base, path=folder), targets, calibration)
    if composed:
        text, chatting, stops = composed
        path = first.with_name(f"Modelfile.{name.replace('/', '-').replace(':', '-')}")
        ollama.write(path, text)
        held = ollama.verify(path, chatting, stops)
        if not held.passed:
            raise RunError("modelfile", held.note)
        logger.info("{}: {}", path, held.note)
        logger.info("ollama create {} -f {}", name, path)
    return list(targets.values())


def parser() -> argparse.ArgumentParser:
    """What the command line may say."""
    made = Parser(prog="convert_to_gguf.py", description=__doc__.splitlines()[0], allow_abbrev=False)
    made.add_argument("--model-path", required=True, metavar="DIR", help="config.json, *.safetensors, tokenizer files")
    made.add_argument("--quantization", default="q4_k_m", metavar="NAMES", help="one or several, separated by commas")
    made.add_argument("--output", metavar="F", help="a .gguf file, or a folder; default: beside DIR, NAME.Q4_K_M.gguf")
    made.add_argument(
        "--calibration", metavar="FILE", help="a text for the importance matrix that iq1, iq2, iq3_x and q2_k_s need"
    )
    made.add_argument("--create-modelfile", action="store_true", help="write Modelfile.NAME beside the GGUF")
    made.add_argument("--model-name", metavar="NAME", help="for the files and for Ollama; default: DIR's own name")
    made.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")
    return made


def _methods(written: str) -> list[str]:
    found, problems = [], []
    for word in filter(None, (part.strip() for part in written.split(","))):
        try:
            found.append(names.quantisation(word))
        except ValueError as error:
            problems.append(f"--quantization {word}: {error}")
    if problems or not found:
        raise UserError(problems or "--quantization is empty; q4_k_m, q8_0 and f16 are usual")
    return list(dict.fromkeys(found))


def _calibration(written: str | None, methods: Sequence[str]) -> str:
    """The text of --calibration, where a method needs one."""
    needing = [method for method in methods if method in names.NEED_IMPORTANCE_MATRIX]
    if not needing:
        return ""
    if written is None:
        raise UserError(
            f"--quantization {needing[0]}: it needs an importance matrix, and that a text like those the model is for: name "
            "one (--calibration FILE), or take q3_k_m or q2_k, which need none"
        )
    file = paths.expanded(written)
    if file.exists() and not file.is_file():
        raise UserError(f"--calibration {written}: is no file; a text is wanted")
    try:
        with file.open(encoding="utf-8-sig") as stream:
            # 10,000 words are enough: what follows so many characters would only take memory.
            text = stream.read(MOST_CALIBRATION)
    except UnicodeDecodeError as error:
        raise UserError(f"--calibration {written}: not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise UserError(f"--calibration {written}: cannot be read: {error.strerror}") from None
    if len(text.split()) < FEWEST_WORDS:
        raise UserError(
            f"--calibration {written}: a text of {FEWEST_WORDS:,} words at least is wanted; 10,000 are enough"
        )
    return text


def _locate(written: str, trust_remote_code: bool) -> BaseModel:
    path = paths.expanded(written).resolve()
    if path.suffix.lower() == ".gguf":
        raise UserError(f"--model-path {written}: it is a GGUF file already; a folder with config.json is wanted")
    wanted = Model(base_model_name=str(path), trust_remote_code=trust_remote_code)
    base = base_model.locate(wanted, say=logger.info)
    for line in leftovers.words(base.path):
        logger.warning(line)
    weights_fit.check(base.path, base.config, trust_remote_code)
    return base


def _targets(output: str | None, folder: Path, name: str, methods: Sequence[str]) -> dict[str, Path]:
    """Where each file goes. UserError when one file is named for several quantisations, or it is not called .gguf."""
    into = folder.parent
    if output is not None:
        path = paths.expanded(output).absolute()
        if path.suffix == ".gguf" and not path.is_dir():
            if len(methods) > 1:
                raise UserError(f"--output {output}: {len(methods)} quantisations make as many files; name a folder")
            return {methods[0]: path}
        if not path.is_dir() and not output.endswith(os.sep):
            raise UserError(f"--output {output}: a file name ends in .gguf, and a folder in {os.sep} or exists already")
        into = path
    return {method: into / f"{name}.{method.upper()}.gguf" for method in methods}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
