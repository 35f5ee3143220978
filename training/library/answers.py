"""Load what a run has made, or any base model, and ask it."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from training.errors import MachineError, UserError
from training.library.config import FineTuningConfig
from training.system import paths

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.evaluation.target import Target

Prompt = str | Sequence[Mapping[str, str]]
# What is known of the models that were loaded here: their template, and what ends an answer.
_known: WeakKeyDictionary[object, Target] = WeakKeyDictionary()


def load(
    model: FineTuningConfig | str | os.PathLike[str], device: str | None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """See training.load_model_and_tokenizer."""
    with _quiet():
        target = _target(model)
        loaded = _loaded(target)
        tokenizer = target.tokenizer()
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device.startswith("cuda"):
        kind = torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        loaded = cast(Any, loaded).to(device=device, dtype=kind)
    elif device != "cpu":
        loaded = cast(Any, loaded).to(device)
    _known[loaded] = target
    return loaded, tokenizer


def _target(model: FineTuningConfig | str | os.PathLike[str]) -> Target:
    """A run, a part of one, an adapter, or a base model. The config says length and template of what is no run's."""
    from training.evaluation.target import Target

    if not isinstance(model, (FineTuningConfig, str, os.PathLike)):
        raise UserError(f"model= takes a run, a path, a name or a FineTuningConfig, not {type(model).__name__}")
    config = model if isinstance(model, FineTuningConfig) else FineTuningConfig()
    name = config.settings.model.base_model_name if isinstance(model, FineTuningConfig) else os.fspath(model)
    path = paths.expanded(name).absolute()
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        ini = config.write(Path(folder) / "FineTuningConfig.ini")
        if path.is_dir() and (_is_of_a_run(path) or (path / "adapter_config.json").is_file()):
            return Target.named(str(path), None, ini)
        if path.suffix == ".gguf" and _is_of_a_run(path):
            raise UserError(f"{name}: is the file for llama.cpp and Ollama; name its run's folder, {path.parent}")
        return Target.named(None, name, ini)


def _is_of_a_run(path: Path) -> bool:
    from training import runs

    path = path.resolve()
    return any((folder / runs.STATUS).is_file() for folder in (path, path.parent))


def _loaded(target: Target) -> PreTrainedModel | PeftModel:
    from training.evaluation import reference

    if not target.has_base:
        raise UserError(f"the base model is no longer at {target.base}")
    with reference.opened(target.base, adapter=target.adapter) as opened:
        if isinstance(opened, reference.TooLarge):
            raise MachineError(f"{target.base} does not fit into memory: {opened.reason}")
        return opened.model


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nothing of ours goes into the caller's log sinks."""
    from loguru import logger

    logger.disable("training")
    try:
        yield
    finally:
        logger.enable("training")


def answer(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    most: int,
    temperature: float,
    seed: int | None,
) -> str:
    """See training.generate_text."""
    if most < 1:
        raise UserError(f"max_new_tokens={most}: must be at least 1")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature={temperature}: must be a number from 0 on")
    import torch

    ids, end_ids = _tokens(model, tokenizer, prompt)
    room = getattr(model.config, "max_position_embeddings", None) or len(ids) + most
    if len(ids) >= room:
        raise UserError(f"the prompt has {len(ids):,} tokens, and the model takes {room:,}")
    how: dict[str, Any] = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None}
    if temperature > 0:
        how = {"do_sample": True, "temperature": temperature}
    given = torch.tensor([ids], device=model.device)
    with torch.no_grad(), torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        # PreTrainedModel's type does not say that it can.
        out = cast(Any, model.eval()).generate(
            input_ids=given,
            attention_mask=torch.ones_like(given),
            max_new_tokens=max(1, min(most, room - len(ids))),
            eos_token_id=end_ids,
            pad_token_id=end_ids[0],
            **how,
        )
    new = out[0, len(ids) :].tolist()
    ends = [at for at, token in enumerate(new) if token in end_ids]
    return cast(str, tokenizer.decode(new[: ends[0]] if ends else new, skip_special_tokens=True)).strip()


def _tokens(
    model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, prompt: Prompt
) -> tuple[list[int], list[int]]:
    """The tokens before the answer, as they were in training, and those that end it."""
    from training.data import Turn, chat_template, encoding, fast_tokenising

    target = _known.get(model)
    turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(turn) for turn in prompt]
    if target is None:  # loaded by the caller
        ends = [end for end in [tokenizer.eos_token_id] if isinstance(end, int)]
        if not ends:
            raise UserError("the tokenizer names no token that ends an answer (eos_token)")
        if tokenizer.chat_template is None:
            return tokenizer(_bare(prompt))["input_ids"], ends
        text = tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return tokenizer(str(text), add_special_tokens=False)["input_ids"], ends
    if target.template is None:
        text = _bare(prompt)
    else:
        conversation = chat_template.conversation(target.template, [Turn(t["role"], t["content"]) for t in turns])
        text = chat_template.render(target.template, conversation, add_generation_prompt=True)
    ids = encoding.with_bos(fast_tokenising.tokeniser(tokenizer)([text])[0], tokenizer)
    return list(ids), target.end_ids


def _bare(prompt: Prompt) -> str:
    if isinstance(prompt, str):
        return prompt
    raise UserError("this model takes plain text, and no messages: give the prompt as one text")
