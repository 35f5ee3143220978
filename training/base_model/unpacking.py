"""Turn a GGUF file into a Hugging Face folder: bf16 safetensors, a proved tokenizer, the right end of a turn.

The names and shapes of the tensors are those of transformers' own model for the file's architecture, laid out without
weights; every one of them must be filled, and every tensor of the file used, or the file is refused. Weights pass one
by one, so memory holds one tensor and one shard. At the end the folder is run against llama.cpp running the file: a
setting that the file does not tell, or that was misread, shows there and nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from training import llama
from training.base_model import gguf_config, gguf_tokenizer
from training.errors import UserError
from training.llama import GGUF, gguf_file, process
from training.system import files, this_machine

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.modeling_gguf_pytorch_utils import TensorProcessor

SHARD = 2 << 30  # bytes of weights a file, at most (a single larger tensor gets a file of its own)
ROWS = 16384  # rows of an embedding de-quantised at once: 16384 x 8192 x 4 bytes = 512 MB
UNUSED = ("rope_freqs.weight",)  # in the file for llama.cpp's sake; config.json says the same
# Nats, mean: the embedded model has 0.007 (llama.cpp's 8-bit activations, bf16); a wrong setting, 1 and more.
DIVERGENCE = 0.05
SAMPLE = (
    "The quick brown fox jumps over 13 lazy dogs. Water boils at 100 °C, and in 1789 the people of Paris stormed it."
)


def unpack(path: Path, folder: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """Fill the existing, empty `folder` with the model in the GGUF file `path`.

    Raises UserError where the file is damaged, its architecture is not known to transformers, its tokenizer cannot be
    rebuilt so that it equals llama.cpp's on the texts of gguf_tokenizer, or the result does not predict what llama.cpp
    predicts from the file.
    """
    gguf = gguf_file.read(path)
    try:
        if gguf.fields.get("split.count", 0) > 1:
            raise UserError("it is one part of several; join them first with `llama-gguf-split --merge`")
        with llama.opened(path, vocab_only=True) as opened:
            vocabulary = gguf_tokenizer.read(gguf, opened)
            tokenizer = gguf_tokenizer.build(vocabulary)
            texts = gguf_tokenizer.prove(tokenizer, opened, vocabulary)
        say(f"{path.name}: the rebuilt tokenizer equals llama.cpp's on {texts} texts")
        config = gguf_config.build(gguf, {name: vocabulary.special[name] for name in ("bos", "eos", "pad")})
        gguf_tokenizer.save(tokenizer, vocabulary, folder, getattr(config, "max_position_embeddings", None))
        write_weights(gguf, config, folder)
        agreement(path, folder, say)
    except UserError as error:
        raise UserError([f"{path}: {problem}" for problem in error.problems]) from error


def write_weights(gguf: GGUF, config: PreTrainedConfig, folder: Path) -> None:
    """Write config.json, generation_config.json and the weights as bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    processor = TENSOR_PROCESSORS.get(gguf.architecture, TensorProcessor)(config=config.to_dict())
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    _save_shards(_tensors(gguf, processor, _names(gguf, model, processor), shapes), shapes, folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)


def agreement(path: Path, folder: Path, say: Callable[[str], None]) -> float | None:
    """Mean KL (nats) of the folder's predictions to llama.cpp's, both of the same few tokens; UserError above DIVERGENCE.

    None, and said, where memory does not hold the model beside the mapped file. The folder is run in float32 if that
    fits, else in bf16.
    """
    import torch
    from transformers import AutoModelForCausalLM

    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    _, free = this_machine.memory()
    free -= path.stat().st_size
    if free < 1.5 * size:
        say(f"{path.name}: not compared with llama.cpp: {size >> 20} MB of weights, {free >> 20} MB of memory left")
        return None
    with llama.opened(path) as opened:
        ids = process.tokenise(opened, [SAMPLE])[0]
        special = llama.metadata(opened)["vocab"]
        ids = [special["bos"], *ids] if special["add_bos"] and special["bos"] >= 0 else ids
        theirs = llama.log_softmax(llama.logits(opened, [ids])[0])
    dtype = torch.float32 if free > 3 * size else torch.bfloat16
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    with torch.no_grad():
        ours = llama.log_softmax(model(torch.tensor([ids])).logits[0].float().numpy())
    found = float(llama.kl_divergence(theirs, ours).mean())
    if not found <= DIVERGENCE:  # NaN is no agreement either
        raise UserError(
            f"unpacked, the model does not predict what llama.cpp predicts from the file (mean divergence {found:.3f} "
            f"nats, at most {DIVERGENCE}): transformers reads this file differently; name the model's Hub id instead"
        )
    say(f"{path.name}: predicts what llama.cpp predicts (mean divergence {found:.4f} nats on {len(ids)} tokens)")
    return found


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars of transformers: this one is over before it is read."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _names(gguf: GGUF, model: PreTrainedModel, processor: TensorProcessor) -> dict[str, str]:
    """GGUF name -> Hugging Face name, for the weights of the model laid out without them."""
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map
    from transformers.modeling_gguf_pytorch_utils import get_gguf_hf_weights_map

    architecture = next((number for number, name in MODEL_ARCH_NAMES.items() if name == gguf.architecture), None)
    if architecture is None:
        raise UserError(f'the package gguf does not know the architecture "{gguf.architecture}"')
    table = get_tensor_name_map(architecture, model.config.num_hidden_layers)
    names: dict[str, str] = {}
    for ours in model.state_dict():
        stem, dot, suffix = processor.preprocess_name(ours).rpartition(".")
        stem, suffix = (stem, dot + suffix) if suffix in ("weight", "bias") else (ours, "")
        if theirs := table.get_name(stem):
            names[theirs + suffix] = ours
        else:
            processor.perform_fallback_tensor_mapping(names, suffix, "", ours)
    if gguf.tensors.keys() - names.keys() - set(UNUSED):
        # Its way of looking into the parts of the model finds more, and takes 5 s for 30 layers.
        names = get_gguf_hf_weights_map(model, processor) | names
    return names


def _tensors(
    gguf: GGUF, processor: TensorProcessor, names: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight of the model under its Hugging Face name, in bf16; UserError when one is left over."""
    import torch

    collected: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}  # what a processor of experts puts together
    for name, tensor in gguf.tensors.items():
        if name in UNUSED:
            continue
        if name in ("token_embd.weight", "output.weight") and names.get(name) in shapes:
            parts = (gguf.values(tensor, first, ROWS) for first in range(0, tensor.shape[0], ROWS))
            yield names[name], torch.cat([torch.from_numpy(part).to(torch.bfloat16) for part in parts])
            continue
        result = processor.process(
            weights=gguf.values(tensor), name=name, tensor_key_mapping=names, parsed_parameters=collected
        )
        if result.name is None:
            continue
        if names.get(result.name) not in shapes:
            raise UserError(f"its tensor {name} has no place in transformers' model of this architecture")
        yield names[result.name], torch.from_numpy(result.weights.copy()).to(torch.bfloat16)
    for name, value in collected["tensors"].items():
        yield name, value.to(torch.bfloat16)


def _save_shards(tensors: Iterator[tuple[str, torch.Tensor]], shapes: dict[str, tuple[int, ...]], folder: Path) -> None:
    """Write tensors as they come into model.safetensors, or into numbered shards with an index."""
    from safetensors.torch import save_file

    shards: list[Path] = []
    where: dict[str, int] = {}
    waiting: dict[str, torch.Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal waiting, size
        shards.append(folder / f"part-{len(shards)}.safetensors")
        save_file(waiting, shards[-1], metadata={"format": "pt"})
        shards[-1].chmod((folder / "tokenizer.json").stat().st_mode & 0o777)  # safetensors writes for the owner only
        waiting, size = {}, 0

    for name, value in tensors:
        if tuple(value.shape) != shapes[name]:
            raise UserError(f"{name} has the shape {tuple(value.shape)}; its architecture wants {shapes[name]}")
        if waiting and size + value.nbytes > SHARD:
            flush()
        waiting[name], where[name] = value.contiguous(), len(shards)
        size, total = size + value.nbytes, total + value.nbytes
    if missing := sorted(shapes.keys() - where.keys()):
        raise UserError(f"it lacks the weights of {', '.join(missing[:5])}{' ...' if len(missing) > 5 else ''}")
    flush()
    if len(shards) == 1:
        shards[0].rename(folder / "model.safetensors")
        return
    final = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    for path, name in zip(shards, final, strict=True):
        path.rename(folder / name)
    index = {"metadata": {"total_size": total}, "weight_map": {name: final[i] for name, i in where.items()}}
    files.write_json(folder / "model.safetensors.index.json", index)
