"""What lies in a model folder and is not the model (training/base_model/leftovers.py, base_model/safetensors_file.py): left out by name, by every reader."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.support import small
from tests.support.faults import NO_EXPORT, faulty, only_run
from tests.support.folders import write
from tests.support.tiny import write_tiny_config
from training import convert_to_gguf
from training.base_model import leftovers, safetensors_file
from training.to_gguf import merging

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

BASE = {"model.embed_tokens.weight": ("BF16", (10, 8)), "model.norm.weight": ("BF16", (8,))}
WHOLE, INDEX = safetensors_file.WHOLE, safetensors_file.INDEX
PARTS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def model(folder: Path) -> Path:
    """A model folder of one file."""
    write(folder / WHOLE, BASE)
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    return folder


def parts(folder: Path) -> None:
    """The parts of a sharded model, and their index, in a folder."""
    for part, name in zip(PARTS, BASE, strict=True):
        write(folder / part, {name: BASE[name]})
    (folder / INDEX).write_text(json.dumps({"weight_map": dict(zip(BASE, PARTS, strict=True))}))


def an_adapter(folder: Path) -> None:
    """What a LoRA training leaves."""
    write(folder / "adapter_model.safetensors", {"x.lora_A.weight": ("F32", (4, 8))})
    (folder / "adapter_config.json").write_text("{}")


# What lies there beside the model -> the names that are left out.
LEFT = {
    "adapter": (an_adapter, ["adapter_config.json", "adapter_model.safetensors"]),
    "adapter_config": (lambda folder: (folder / "adapter_config.json").write_text("{}"), ["adapter_config.json"]),
    "pickled adapter": (lambda folder: (folder / "adapter_model.bin").write_bytes(b"x"), ["adapter_model.bin"]),
    "old parts and their index": (parts, [*PARTS, INDEX]),
    "old index alone": (lambda folder: (folder / INDEX).write_text("{}"), [INDEX]),
    "another precision": (lambda folder: write(folder / "model.fp32.safetensors", BASE), ["model.fp32.safetensors"]),
    "index of another precision": (
        lambda folder: (folder / "model.fp16.safetensors.index.json").write_text("{}"),
        ["model.fp16.safetensors.index.json"],
    ),
    "Mistral's own": (lambda folder: write(folder / "consolidated.safetensors", BASE), ["consolidated.safetensors"]),
    "litter of macOS": (
        lambda folder: (folder / "._model.safetensors").write_bytes(b"\xff" * 9),
        ["._model.safetensors"],
    ),
}


@pytest.mark.parametrize(("put", "names"), LEFT.values(), ids=LEFT)
def test_what_is_not_the_model_is_left_out_and_named(put, names: list[str], tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    put(folder)
    (told,) = leftovers.words(folder)
    assert f"{folder}: left out: {', '.join(sorted(names))}" in told
    assert safetensors_file.shards(folder) == [folder / WHOLE]
    assert sum(tensor.rows * tensor.width for tensor in safetensors_file.tensors(folder).values()) == 88
    with leftovers.kept_out(folder) as seen:
        assert sorted(entry.name for entry in seen.iterdir()) == ["config.json", WHOLE, "tokenizer.json"]
        assert seen.name == folder.name, "the converter writes it into the file"
        assert (seen / WHOLE).resolve() == folder / WHOLE
    assert not seen.exists()


def test_a_folder_without_leftovers_is_seen_as_it_is_and_nothing_is_said(tmp_path: Path) -> None:
    folder = model(tmp_path / "one")
    sharded = model(tmp_path / "parts")
    parts(sharded)
    (sharded / WHOLE).unlink()
    for path in (folder, sharded):
        assert leftovers.words(path) == []
        with leftovers.kept_out(path) as seen:
            assert seen == path


def test_an_adapter_and_old_weights_are_told_in_a_line_each(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    an_adapter(folder)
    parts(folder)
    first, second = leftovers.words(folder)
    assert first.endswith(
        "adapter_config.json, adapter_model.safetensors, an adapter that lies beside the model. The model is taken without "
        "it; if it is not merged yet, merge it first"
    )
    assert second.endswith(
        f"left out: {', '.join(sorted([*PARTS, INDEX]))}; the weights are those of model.safetensors"
    )


def test_a_stale_index_is_not_written_to_the_merged_folder(tmp_path: Path) -> None:
    folder = model(tmp_path / "m")
    parts(folder)
    q = "model.layers.0.self_attn.q_proj"
    write(folder / WHOLE, {**BASE, f"{q}.weight": ("BF16", (6, 8))})
    factors = {f"{q}.lora_A.weight": ("F32", (4, 8)), f"{q}.lora_B.weight": ("F32", (6, 4))}
    write(
        tmp_path / "a" / "adapter_model.safetensors", {f"base_model.model.{name}": at for name, at in factors.items()}
    )
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8}))
    assert list(merging.plan(folder, tmp_path / "a").shards) == [WHOLE]
    merged = tmp_path / "merged"
    merged.mkdir()
    merging._write_index(folder, merged, merging.plan(folder, tmp_path / "a"))
    assert list(merged.iterdir()) == []


@pytest.mark.tiny
def test_a_run_on_a_model_beside_which_an_adapter_lies_trains_the_model_alone(tiny_model: Path, tmp_path: Path) -> None:
    from tests.support.architectures import random_adapter

    folder = shutil.copytree(tiny_model, tmp_path / "m")
    random_adapter(folder, folder, target_modules=["gate_proj"])
    ended = faulty(NO_EXPORT, "--config", write_tiny_config(tmp_path, folder))
    assert "evaluate: enough" in ended.stderr
    told = f"warning: {folder}: left out: adapter_config.json, adapter_model.safetensors, an adapter that lies beside"
    assert ended.stderr.count(told) == 1
    adapter = only_run(tmp_path / "config.ini") / "adapter"
    assert json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"] == str(folder)
    assert not [
        name for name in safetensors_file.header(adapter / "adapter_model.safetensors")[0] if "gate_proj" in name
    ]


@pytest.mark.tiny
def test_what_is_converted_is_what_transformers_takes(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "m")
    parts(folder)
    an_adapter(folder)
    seen: list[str] = []
    monkeypatch.setattr(
        convert_to_gguf, "convert_folder", lambda base, *_: seen.extend(file.name for file in base.path.iterdir())
    )
    convert_to_gguf.run(convert_to_gguf.parser().parse_args(["--model-path", str(folder)]))
    assert sorted(seen) == sorted(file.name for file in tiny_model.iterdir())
