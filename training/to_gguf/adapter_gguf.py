"""The adapter alone as a GGUF file, for people whose Ollama has the base model already: FROM base + ADAPTER.

Made by llama.cpp's own convert_lora_to_gguf.py, which knows plain LoRA on weight matrices and one scale for all of them:
what else PEFT can do is worked into the factors where that is possible, and refused where it is not.
"""

from __future__ import annotations

from pathlib import Path

from loguru import logger

from training import ollama
from training.base_model import generation, load_tokenizer, lora_adapter, model_json, safetensors_file
from training.base_model.lora_adapter import Change
from training.data import chat_template
from training.errors import MachineError, RunError, UserError
from training.llama import gguf_file
from training.ollama import modelfile
from training.ollama.modelfile_syntax import model_name_problems
from training.system import files, shell, temporary
from training.to_gguf import conversion
from training.to_gguf.job import Job

STAGE = "adapter"
CONVERTER = conversion.CONVERTER.with_name("convert_lora_to_gguf.py")


def export(job: Job, base_in_ollama: str, path: Path | None = None) -> Path:
    """Write NAME.adapter.gguf and a Modelfile for it (default Modelfile.adapter) into a run; gives the latter.

    Needs nothing of the run but its adapter. UserError when the adapter or the name of the base cannot be used so.
    """
    if problems := model_name_problems(base_in_ollama):
        raise UserError([f"--adapter {base_in_ollama}: {problem}" for problem in problems])
    path = path or job.run.path / "Modelfile.adapter"
    gguf = job.run.path / f"{job.settings.name}.adapter.gguf"
    # BOS is put in front by the base model in Ollama, whose tokenizer is the one that was trained with.
    chatting = job.chat(_adds_bos(job.base))
    text = ollama.compose(
        gguf.name,
        chatting,
        stops=job.facts.stops,
        num_ctx=job.facts.num_ctx,
        sampling=modelfile.sampling(generation.config(job.base)),
        adapter_of=base_in_ollama,
    )
    count = write(job.base, job.run.path / "adapter", gguf)
    ollama.write(path, text)
    held = ollama.verify(path, chatting, job.facts.stops)
    if not held.passed:
        raise RunError("modelfile", held.note)
    logger.info("{}: {} adapted tensors, {:,} bytes", gguf.name, count, gguf.stat().st_size)
    logger.info("{}: the model in Ollama must be {} in another form: {}", path.name, job.facts.base.name, held.note)
    return path


def write(base: Path, adapter: Path, out: Path) -> int:
    """Convert a PEFT adapter of the model folder `base` to the GGUF file `out`; gives the number of adapted tensors.

    UserError when a GGUF file cannot hold what was trained; RunError with the converter's reason when it fails.
    """
    if not CONVERTER.is_file():
        raise MachineError(f"llama.cpp's converter is not there ({CONVERTER}): run {shell.command('setup.sh')}")
    config = model_json.read(base / "config.json")
    changes = lora_adapter.changes(
        safetensors_file.tensors(base, STAGE), adapter, bool(config.get("tie_word_embeddings"))
    )
    _refuse(changes)
    factors = [factor for change in changes for factor in (change.a, change.b) if factor is not None]
    need = sum(4 * (factor.size // safetensors_file.SIZES[factor.dtype]) for factor in factors)
    with temporary.folder("adapter") as name, files.whole_file(out, shared=True) as partial:
        _one_scale(changes, adapter, name)
        arguments = ["--base", base.absolute(), "--outfile", partial.absolute(), "--outtype", "f32", name]
        conversion.work(STAGE, out, need, ["convert", CONVERTER, *arguments], None)
        conversion.check_written(STAGE, partial)
        made = gguf_file.read(partial).tensors
        if len(made) != 2 * len(changes):
            raise RunError(STAGE, f"llama.cpp's converter kept {len(made) // 2} of {len(changes)} adapted tensors")
    return len(changes)


def _refuse(changes: list[Change]) -> None:
    why = {
        "replaced": "trained weights that are no low-rank update (biases, MODULES_TO_SAVE)",
        "embedding": "an adapted embedding",
        "dora": "DoRA's magnitudes",
        "expert": "adapted experts",
    }
    found = {
        "dora" if change.magnitude is not None else "expert" if change.expert != (0, 1) else change.kind: change.module
        for change in changes
    }
    if problems := [f"{why[kind]} ({module})" for kind, module in found.items() if kind in why]:
        raise UserError(
            f"an adapter file cannot hold {', '.join(problems)}; export the merged model instead, without --adapter"
        )


def _one_scale(changes: list[Change], adapter: Path, folder: Path) -> None:
    """A copy of the adapter with plain scaling, alpha / rank everywhere: any other is worked into B.

    llama.cpp divides alpha by the rank of each tensor; it knows nothing of rank-stabilised LoRA and alpha patterns.
    """
    from safetensors.torch import load_file, save_file

    tensors = load_file(adapter / lora_adapter.WEIGHTS)
    config = model_json.read(adapter / lora_adapter.CONFIG)
    for change in changes:
        tensors[change.b.name] = tensors[change.b.name].float() * (change.scaling * change.rank / config["lora_alpha"])
    save_file(tensors, folder / lora_adapter.WEIGHTS)
    files.write_json(folder / lora_adapter.CONFIG, config)


def _adds_bos(folder: Path) -> bool:
    return chat_template.adds_bos(load_tokenizer(folder))
