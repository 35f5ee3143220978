"""Turn a GGUF file into a Hugging Face folder: bf16 safetensors, a proved tokenizer, the right end of a turn.

The names and shapes of the tensors are those of transformers' own model for the file's architecture, laid out without
weights; every one of them must be filled, and every tensor of the file used, or the file is refused. Weights pass one
by one, so memory holds one tensor and one shard.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training import files, gguf_tokenizer, llama
from training.errors import MachineError, UserError

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader, ReaderTensor

SHARD = 2 << 30  # bytes of weights a file, at most (a single larger tensor gets a file of its own)
ROWS = 16384  # rows of an embedding de-quantised at once: 16384 x 8192 x 4 bytes = 512 MB


def unpack(gguf: Path, folder: Path, say: Callable[[str], None] = lambda text: None) -> None:
    """Fill the existing, empty `folder` with the model in `gguf`.

    Raises UserError where the file is damaged, its architecture is not known to transformers, or its tokenizer cannot be
    rebuilt so that it equals llama.cpp's on the texts of gguf_tokenizer.
    """
    reader = _open(gguf)
    try:
        vocabulary = read_vocabulary(gguf, reader)
        tokenizer = gguf_tokenizer.build(vocabulary)
        texts = gguf_tokenizer.prove(tokenizer, gguf, vocabulary)
        say(f"{gguf.name}: the rebuilt tokenizer equals llama.cpp's on {texts} hard texts")
        config = _config(gguf, reader, vocabulary)
        gguf_tokenizer.save(tokenizer, vocabulary, folder, getattr(config, "max_position_embeddings", None))
        _write_weights(reader, config, folder)
    except UserError as error:
        raise UserError([f"{gguf}: {problem}" for problem in error.problems]) from error


def read_vocabulary(gguf: Path, reader: GGUFReader) -> gguf_tokenizer.Vocabulary:
    """What the file says about its tokenizer."""

    def field(name: str, default: Any) -> Any:
        found = reader.fields.get(f"tokenizer.{name}")
        return default if found is None else found.contents()

    tokens = field("ggml.tokens", [])
    if not tokens:
        raise UserError("it holds no vocabulary")
    return gguf_tokenizer.Vocabulary(
        model=field("ggml.model", ""),
        pre=field("ggml.pre", "") or "default",
        tokens=tokens,
        types=field("ggml.token_type", None) or [gguf_tokenizer.NORMAL] * len(tokens),
        scores=field("ggml.scores", []),
        merges=field("ggml.merges", []),
        unknown=field("ggml.unknown_token_id", None),
        space_prefix=field("ggml.add_space_prefix", True),
        chat_template=field("chat_template", None),
        special=llama.metadata(gguf)["vocab"],
    )


def _open(gguf: Path) -> GGUFReader:
    try:
        from gguf import GGUFReader
    except ImportError as error:
        raise MachineError(f"the package gguf cannot be used ({error}): run ./setup.sh") from error
    try:
        return GGUFReader(gguf)
    except (ValueError, KeyError, IndexError, UnicodeDecodeError) as error:  # what it raises on a damaged file
        raise UserError(f"{gguf}: not a whole GGUF file: {error}") from error


def _config(gguf: Path, reader: GGUFReader, vocabulary: gguf_tokenizer.Vocabulary) -> Any:
    """transformers' configuration of the model, with the token ids the file gives."""
    from transformers import AutoConfig
    from transformers.modeling_gguf_pytorch_utils import load_gguf_checkpoint

    architecture = reader.fields["general.architecture"].contents()
    try:
        found = load_gguf_checkpoint(str(gguf))["config"]
    except ValueError as error:
        raise UserError(
            f'transformers cannot read the architecture "{architecture}" from a GGUF file ({error})'
        ) from error
    found.pop("_model_name_or_path", None)
    ids = {f"{name}_token_id": vocabulary.special[name] for name in ("bos", "eos", "pad")}
    found |= {name: token if token >= 0 else None for name, token in ids.items()}
    found["pad_token_id"] = found["eos_token_id"] if found["pad_token_id"] is None else found["pad_token_id"]
    config = AutoConfig.for_model(found.pop("model_type"), **found)
    config.dtype = "bfloat16"
    return config


def _write_weights(reader: GGUFReader, config: Any, folder: Path) -> None:
    """Write config.json, generation_config.json and the weights as bf16 safetensors."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig
    from transformers.modeling_gguf_pytorch_utils import TENSOR_PROCESSORS, TensorProcessor, get_gguf_hf_weights_map

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    architecture = reader.fields["general.architecture"].contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=config.to_dict())
    names = get_gguf_hf_weights_map(model, processor)
    tied = set(model._tied_weights_keys or ()) if config.tie_word_embeddings else set()
    shapes = {name: tuple(value.shape) for name, value in model.state_dict().items() if name not in tied}
    _save_shards(_tensors(reader, processor, names, shapes), shapes, folder)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)
    GenerationConfig(
        bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    ).save_pretrained(folder)


def _tensors(
    reader: GGUFReader, processor: Any, names: dict[str, str], shapes: dict[str, tuple[int, ...]]
) -> Iterator[tuple[str, torch.Tensor]]:
    """Each weight of the model under its Hugging Face name, in bf16; UserError when one is left over or has another shape."""
    import torch

    collected: dict[str, dict[str, torch.Tensor]] = {"tensors": {}}  # what a processor of experts puts together
    for tensor in reader.tensors:
        if tensor.name in ("token_embd.weight", "output.weight") and tensor.name in names:
            yield names[tensor.name], _embedding(tensor)
            continue
        result = processor.process(
            weights=_values(tensor), name=tensor.name, tensor_key_mapping=names, parsed_parameters=collected
        )
        if result.name is None:
            continue
        if result.name not in names or names[result.name] not in shapes:
            raise UserError(f"its tensor {tensor.name} has no place in transformers' model of this architecture")
        yield names[result.name], torch.from_numpy(result.weights.copy()).to(torch.bfloat16)
    for name, value in collected["tensors"].items():
        yield name, value.to(torch.bfloat16)


def _values(tensor: ReaderTensor) -> Any:
    from gguf.quants import dequantize

    try:
        return dequantize(tensor.data, tensor.tensor_type)
    except NotImplementedError as error:
        raise UserError(
            f"its tensor {tensor.name} is of the type {tensor.tensor_type.name}, which cannot be read"
        ) from error


def _embedding(tensor: ReaderTensor) -> torch.Tensor:
    """A large matrix, de-quantised some rows at a time: at 152k x 4096 its float32 form alone would take 2.5 GB."""
    import torch
    from gguf.quants import dequantize

    parts = [tensor.data[i : i + ROWS] for i in range(0, len(tensor.data), ROWS)]
    return torch.cat(
        [torch.from_numpy(dequantize(part, tensor.tensor_type).copy()).to(torch.bfloat16) for part in parts]
    )


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
        waiting, size = {}, 0

    for name, value in tensors:
        if tuple(value.shape) != shapes.get(name):
            raise UserError(f"{name} has the shape {tuple(value.shape)}; its architecture wants {shapes.get(name)}")
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
