"""Merges a LoRA adapter into its 16-bit base on the CPU, a block of rows at a time: memory does not grow with the model.

Sums are made in float32 and rounded once, to the dtype that the base has on disk. Never into 4-bit weights: a run that
trained over a 4-bit base is merged into the 16-bit one (peft#2321). No model is built: what is written are the base's
own shards with the targeted tensors replaced, and the base's own files beside them.
"""

from __future__ import annotations

import errno
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from loguru import logger

from training.base_model import kept_files, leftovers, lora_adapter, model_json, safetensors_file
from training.base_model.lora_adapter import Change
from training.base_model.safetensors_file import Tensor
from training.errors import RunError
from training.system import foreign_code, io_errors
from training.system.files import whole_folder
from training.system.foreign_json import Damaged

if TYPE_CHECKING:
    import torch

BLOCK = 1 << 21  # elements computed at a time: 8 MB in float32, and a few temporaries of that size
HEAD, EMBEDDING = "lm_head.weight", "embed_tokens.weight"
TEMPLATE, TOKENIZER_CONFIG, OLD_TEMPLATE = "chat_template.jinja", "tokenizer_config.json", "chat_template.json"


@dataclass(frozen=True)
class Output:
    """One tensor of the merged model: the base's tensor it is made from, its dtype on disk, and what is added."""

    name: str
    source: Tensor
    dtype: str
    changes: tuple[Change, ...] = ()


@dataclass(frozen=True)
class Plan:
    """What a merge will write: the tensors of each shard in order, and whether a tied head is given its own tensor."""

    shards: dict[str, tuple[Output, ...]]
    untied: bool
    base_dtype: str
    dtype: str

    @property
    def outputs(self) -> dict[str, Output]:
        """Every tensor of the merged model by name."""
        return {output.name: output for outputs in self.shards.values() for output in outputs}


@dataclass(frozen=True)
class MergeRecord:
    """What was merged: for the report. `template` says whose chat template stands in the merged folder."""

    path: str
    base_dtype: str
    dtype: str
    tensors: int
    targeted: int
    shards: int
    untied: bool
    template: str
    bytes: int
    seconds: float


def plan(base: Path, adapter: Path) -> Plan:
    """Match an adapter to a base without reading a weight: quick for any size, so it can be tried before training.

    A float32 base is written as bfloat16: 16 bits are what the converter and further training take, and bfloat16 has
    float32's range, so that no weight overflows. A base that mixes dtypes keeps each tensor's own (float32 norms).
    Raises RunError naming the tensor that cannot be merged.
    """
    found = safetensors_file.tensors(base)
    floats = {tensor.dtype for tensor in found.values() if tensor.dtype in safetensors_file.FLOATS}
    config = _read_json(base / "config.json")
    strange = next((tensor for tensor in found.values() if tensor.dtype not in safetensors_file.FLOATS), None)
    if strange is not None and "quantization_config" in config:
        raise RunError(
            "merge",
            f"{base} holds quantised weights ({strange.name} is {strange.dtype}); an adapter is merged into the 16-bit "
            "base: name that as BASE_MODEL_NAME",
        )
    head = next((name for name in found if name.endswith(HEAD)), None)
    embedding = next((name for name in found if name.endswith(EMBEDDING)), None)
    tied = head is None or bool(config.get("tie_word_embeddings"))
    changes: dict[str, list[Change]] = {}
    for change in lora_adapter.changes(found, adapter, tied):
        name = HEAD if change.module.endswith("lm_head") and head is None else change.target.name
        changes.setdefault(name, []).append(change)
    untied = tied and bool({head or HEAD, embedding} & changes.keys())
    if untied and head is None and embedding is not None:
        found[HEAD] = found[embedding]
    narrowed = floats == {"F32"}
    shards: dict[str, list[Output]] = {shard.name: [] for shard in safetensors_file.shards(base)}
    for name, source in found.items():
        dtype = "BF16" if narrowed and source.dtype == "F32" else source.dtype
        shards[source.file.name].append(Output(name, source, dtype, tuple(changes.get(name, ()))))
    kept = "BF16" if narrowed else max(floats, key=lambda dtype: _bytes_of(found, dtype), default="BF16")
    base_dtype = "F32" if narrowed else kept
    return Plan(
        {name: tuple(outputs) for name, outputs in shards.items()},
        untied,
        safetensors_file.FLOATS[base_dtype],
        safetensors_file.FLOATS[kept],
    )


def merge(base: Path, adapter: Path, out: Path, chat_template: str | None = None, alone: bool = False) -> MergeRecord:
    """Write base + adapter to the folder `out` (replacing an older one), whole or not at all.

    base: a Hugging Face folder with safetensors. adapter: PEFT's adapter_config.json and adapter_model.safetensors.
    chat_template: the Jinja text to serve with, which every place for one will say; None leaves the files as they are.
    alone: no template of another name stays beside it, by which readers would write chats with tools.
    Raises RunError when the two do not belong together, a value is not finite, or the disk is full.
    """
    started = time.monotonic()
    planned = plan(base, adapter)
    needed = merge_bytes(base)
    free = shutil.disk_usage(next(parent for parent in out.absolute().parents if parent.exists())).free
    if free < needed:
        raise RunError("merge", _disk(out, needed, free))
    try:
        with whole_folder(out, shared=True) as folder:
            template = _copy_files(base, folder, planned, chat_template, alone)
            for name, outputs in planned.shards.items():
                _write_shard(base / name, folder / name, outputs)
            _write_index(base, folder, planned)
        size = sum(file.stat().st_size for file in out.iterdir() if file.is_file())
    except OSError as error:
        full = error.errno == errno.ENOSPC and not io_errors.out_of_inodes(out)
        words = _disk(out, needed, 0) if full else f"{out} cannot be written: {io_errors.told(error, out)}"
        raise RunError("merge", words) from error
    written = planned.outputs.values()
    return MergeRecord(
        path=str(out),
        base_dtype=planned.base_dtype,
        dtype=planned.dtype,
        tensors=len(written),
        targeted=sum(bool(output.changes) for output in written),
        shards=len(planned.shards),
        untied=planned.untied,
        template=template,
        bytes=size,
        seconds=round(time.monotonic() - started, 3),
    )


def merge_bytes(base: Path) -> int:
    """Bytes that the merged folder of this base takes on disk: for adding up before anything is trained."""
    found = safetensors_file.tensors(base).values()
    narrowed = {tensor.dtype for tensor in found if tensor.dtype in safetensors_file.FLOATS} == {"F32"}
    size = sum(tensor.size // 2 if narrowed and tensor.dtype == "F32" else tensor.size for tensor in found)
    headers = 200 * len(found)  # a name, a dtype, a shape and two offsets take 120 to 160 bytes of JSON
    return size + headers + sum(file.stat().st_size for file in kept_files.kept(base))


def merged_rows(
    output: Output, start: int, stop: int, factors: Sequence[tuple[torch.Tensor, torch.Tensor] | None]
) -> torch.Tensor:
    """Rows `start` to `stop` of a merged tensor, in float32 before rounding.

    factors: B and A of each of its changes in float32; None of one that is replaced.
    """
    rows = safetensors_file.read_rows(output.source, start, stop).float()
    for change, pair in zip(output.changes, factors, strict=True):
        low, high = max(start, change.start), min(stop, change.stop)
        if low >= high:
            continue
        part, own = rows[low - start : high - start], slice(low - change.start, high - change.start)
        if pair is None:
            part.copy_(safetensors_file.read_rows(change.b, own.start, own.stop))
            continue
        b, a = pair
        part.addmm_(b[own], a, alpha=change.scaling)
        if change.magnitude is not None:  # DoRA: each output's weights are scaled to its trained length
            length = safetensors_file.read_rows(change.magnitude)[0, own].float()
            part.mul_((length / part.norm(dim=1)).unsqueeze(1))
    return rows


def _write_shard(source: Path, target: Path, outputs: tuple[Output, ...]) -> None:
    tensors, metadata = safetensors_file.header(source)
    same = len(tensors) == len(outputs) and all(output.dtype == output.source.dtype for output in outputs)
    with source.open("rb") as reader, target.open("wb") as writer:
        if same:  # the base's own header, byte for byte
            length = int.from_bytes(reader.read(8), "little")
            reader.seek(0)
            writer.write(reader.read(8 + length))
        else:
            entries = {output.name: (output.dtype, output.source.shape) for output in outputs}
            writer.write(safetensors_file.encode_header(entries, metadata))
        for output in outputs:
            if output.changes or output.dtype != output.source.dtype:
                for block in _blocks(output):
                    writer.write(block)
            else:
                _copy_bytes(reader, writer, output.source)
    kept_files.keep_closed(source, target)


def _blocks(output: Output) -> Iterator[memoryview]:
    """The bytes of a merged tensor, rounded once to its dtype, a block of rows at a time."""
    import torch

    factors: list[tuple[torch.Tensor, torch.Tensor] | None] = []
    for change in output.changes:
        if change.kind == "replaced":
            factors.append(None)
        else:
            b, a = lora_adapter.factors(change)
            factors.append((b.float(), a.float()))
    step = max(1, BLOCK // max(1, output.source.width))
    for start in range(0, output.source.rows, step):
        rows = merged_rows(output, start, min(start + step, output.source.rows), factors)
        rounded = rows.to(getattr(torch, safetensors_file.FLOATS[output.dtype]))
        if not torch.isfinite(rounded).all():
            raise RunError("merge", f"{output.name} would hold values that are not finite in {output.dtype}")
        yield rounded.contiguous().view(torch.uint8).numpy().data.cast("B")


def _copy_bytes(reader: BinaryIO, writer: BinaryIO, tensor: Tensor) -> None:
    reader.seek(tensor.start)
    left = tensor.size
    while left:
        block = reader.read(min(left, 1 << 23))
        if not block:
            raise RunError("merge", f"{tensor.file} ended while {tensor.name} was read")
        writer.write(block)
        left -= len(block)


def _write_index(base: Path, folder: Path, planned: Plan) -> None:
    """The base's own index; with the new sizes and the new tensor where dtype or head changed."""
    if safetensors_file.source(base) != base / safetensors_file.INDEX:
        return
    if not planned.untied and planned.dtype == planned.base_dtype:
        kept_files.copy(base / safetensors_file.INDEX, folder / safetensors_file.INDEX)
        return
    index = _read_json(base / safetensors_file.INDEX)
    sizes = {
        o.name: o.source.size * safetensors_file.SIZES[o.dtype] // safetensors_file.SIZES[o.source.dtype]
        for o in planned.outputs.values()
    }
    index["weight_map"] = {output.name: shard for shard, outputs in planned.shards.items() for output in outputs}
    index["metadata"] = {**index.get("metadata", {}), "total_size": sum(sizes.values())}
    _write_json(folder / safetensors_file.INDEX, index)


def _copy_files(base: Path, folder: Path, planned: Plan, template: str | None, alone: bool) -> str:
    """Copy the base's own files, with the chat template trained with; say whose template it is."""
    for file in kept_files.kept(base):
        kept_files.copy(file, folder / file.name)
        foreign_code.forget(folder / file.name)
    if others := kept_files.left_out(base):
        logger.info("the merged model takes from its base what a model needs, and not: {}", ", ".join(others))
    _write_config(folder, planned)
    own = own_template(folder)
    if template is None:
        return "the base's own" if own is not None else "none"
    _write_template(folder, template, alone)
    if template == own:
        return "the base's own"
    return "the one trained with" if own is None else "the one trained with, in place of the base's"


def own_template(folder: Path) -> str | None:
    """The chat template of a model folder: chat_template.jinja, which wins, or the one in tokenizer_config.json, or in an
    older file."""
    for place in (_in_jinja, _in_config, _in_old_file):
        if (text := place(folder)) is not None:
            return text
    return None


def _in_jinja(folder: Path) -> str | None:
    if not (folder / TEMPLATE).is_file():
        return None
    with (folder / TEMPLATE).open(encoding="utf-8", newline="") as file:
        return file.read()


def _in_config(folder: Path) -> str | None:
    template = _read_json(folder / TOKENIZER_CONFIG).get("chat_template")
    if isinstance(template, list):  # several named ones; "default" is used for chats
        template = next((entry.get("template") for entry in template if entry.get("name") == "default"), None)
    return template


def _in_old_file(folder: Path) -> str | None:
    """What chat_template.json holds; None, too, for one that cannot be read: nothing but its text is lost."""
    try:
        return _read_json(folder / OLD_TEMPLATE).get("chat_template")
    except RunError:
        return None


def _write_template(folder: Path, template: str, alone: bool) -> None:
    """Let every place in which a reader may look for the chat template say this one; what says it already stays.

    Readers differ in which place they believe: transformers chat_template.jinja, llama.cpp's converter the other.
    """
    settings = _read_json(folder / TOKENIZER_CONFIG)
    configured = _in_config(folder)
    if _in_jinja(folder) != template and ((folder / TEMPLATE).is_file() or configured != template):
        with (folder / TEMPLATE).open("w", encoding="utf-8", newline="") as file:
            file.write(template)
    several = isinstance(settings.get("chat_template"), list)
    if settings.get("chat_template") is not None and (configured != template or (alone and several)):
        _write_json(folder / TOKENIZER_CONFIG, {**settings, "chat_template": template})
    if _in_old_file(folder) != template:
        (folder / OLD_TEMPLATE).unlink(missing_ok=True)


@contextmanager
def without_template(folder: Path) -> Iterator[Path]:
    """A model folder as links, without its chat template: for the GGUF of a model that was trained on plain text.

    Ollama 0.30 and later would chat by the base's template in it, whatever TEMPLATE says, where that knows tools or
    thinking. In `folder` it stays, for whoever trains on from there.
    """
    places = ("chat_template", "additional_chat_templates")
    settings = _read_json(folder / TOKENIZER_CONFIG)
    named = {entry.name for entry in folder.iterdir() if entry.name.startswith(places)}
    configured = settings.pop("chat_template", None) is not None
    with leftovers.linked(folder, named | ({TOKENIZER_CONFIG} if configured else set())) as links:
        if configured:
            _write_json(links / TOKENIZER_CONFIG, settings)
        yield links


def _write_config(folder: Path, planned: Plan) -> None:
    """config.json without quantization_config and with the dtype that was written; untouched where that changes nothing."""
    before = _read_json(folder / "config.json")
    after = {key: value for key, value in before.items() if key != "quantization_config"}
    for part in (after, after.get("text_config")):
        if not isinstance(part, dict):
            continue
        for key in ("dtype", "torch_dtype"):
            if key in part and (planned.dtype != planned.base_dtype or part is after):
                part[key] = planned.dtype
        if planned.untied and (part is after or "tie_word_embeddings" in part):
            part["tie_word_embeddings"] = False
    if after != _read_json(folder / "config.json"):
        _write_json(folder / "config.json", after)


def _bytes_of(tensors: dict[str, Tensor], dtype: str) -> int:
    return sum(tensor.size for tensor in tensors.values() if tensor.dtype == dtype)


def _read_json(file: Path) -> dict[str, Any]:
    try:
        return model_json.read(file) if file.is_file() else {}
    except Damaged as damage:
        raise RunError("merge", str(damage)) from None


def _write_json(file: Path, value: Mapping[str, object]) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def _disk(out: Path, needed: int, free: int) -> str:
    left = f"{free / 1e9:.1f} GB are free" if free else "the disk is full"
    return f"{out} needs {needed:,} bytes ({needed / 1e9:.1f} GB); {left}. Make room and run the export again."
