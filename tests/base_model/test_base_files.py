"""A base model that changed between start, resume and merge is noticed by its files (training/base_model/base_files.py)."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.support.base_models import a_base_model
from tests.support.facts import some_facts
from tests.support.folders import write
from tests.support.runs import put_adapter
from tests.support.settings import a_settings
from training.base_model import base_files, safetensors_file
from training.errors import RunError, UserError
from training.runs import Run, checkpoint
from training.runs.handover import BaseOfRun
from training.to_gguf.job import Job

BASE = {"model.embed_tokens.weight": ("BF16", (8192, 8)), "model.norm.weight": ("BF16", (8,))}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model folder: one file of weights, its settings, its tokenizer, and files that decide nothing."""
    folder = tmp_path / "base"
    write(folder / safetensors_file.WHOLE, BASE)
    for name in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "merges.txt"):
        (folder / name).write_text("{}")
    for name in ("README.md", "LICENSE", "trainer_state.json", "adapter_config.json"):
        (folder / name).write_text("x")
    return folder


def edit(file: Path, place: int, byte: int) -> None:
    with file.open("r+b") as stream:
        stream.seek(place)
        stream.write(bytes([byte]))


def test_a_copy_with_other_times_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(folder, tmp_path / "copy")
    os.utime(copy / safetensors_file.WHOLE, (1, 1))
    (copy / "README.md").write_text("another")
    assert base_files.digests(copy, "folder") == base_files.digests(folder, "folder")


@pytest.mark.parametrize(
    "name", ["config.json", "generation_config.json", "tokenizer.json", "merges.txt", "chat_template.jinja", "own.py"]
)
def test_settings_tokenizer_and_template_are_looked_at_whole(name: str, folder: Path) -> None:
    before = base_files.digests(folder, "folder")
    (folder / name).write_text("{ }")
    assert base_files.changed(before, base_files.digests(folder, "folder")) == [name]


@pytest.mark.parametrize("whole", [True, False], ids=["small", "large"])
def test_weights_are_looked_at_in_every_tensor(whole: bool, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not whole:
        monkeypatch.setattr(base_files, "HASHED_WHOLE", 0)
    file = folder / safetensors_file.WHOLE
    size, tensors = file.stat().st_size, safetensors_file.header(file)[0]
    first, second = (tensors[name] for name in BASE)
    digests = {base_files.digests(folder, "folder")[safetensors_file.WHOLE]}
    for count, place in enumerate(
        (first.start, first.start + first.size // 2, second.start - 1, second.start, size - 1), 2
    ):
        edit(file, place, 7)
        os.utime(file, (count, count))  # the clock of a file system may be too coarse for edits in a row
        digests.add(base_files.digests(folder, "folder")[safetensors_file.WHOLE])
        assert len(digests) == count, f"byte {place} of {size}"


def test_another_precision_of_the_same_size_is_another_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base_files, "HASHED_WHOLE", 0)
    before = base_files.digests(folder, "folder")
    content = (folder / safetensors_file.WHOLE).read_bytes()
    (folder / safetensors_file.WHOLE).write_bytes(content.replace(b'"BF16"', b'"F16" ', 1))
    assert base_files.changed(before, base_files.digests(folder, "folder")) == [safetensors_file.WHOLE]


def test_of_an_unpacked_file_only_the_weights_count_and_of_the_hub_its_commit(folder: Path) -> None:
    assert list(base_files.digests(folder, "gguf")) == [safetensors_file.WHOLE]
    assert base_files.of(a_base_model(folder, kind="hub", revision="a" * 40)) == {}
    assert base_files.of(a_base_model(folder)) == base_files.digests(folder, "folder")


def marks(folder: Path) -> dict[str, object]:
    return checkpoint.fingerprint(a_settings(), "d", a_base_model(folder), "t")


def test_a_run_whose_base_changed_is_not_resumed_and_the_file_is_named(folder: Path) -> None:
    stored = marks(folder)
    checkpoint.refuse_mismatch(stored, marks(folder))
    (folder / "config.json").write_text("[]")
    (folder / "merges.txt").unlink()
    (folder / "chat_template.jinja").write_text("x")
    with pytest.raises(UserError) as caught:
        checkpoint.refuse_mismatch(stored, marks(folder))
    assert caught.value.problems == [
        "chat_template.jinja of the base model has come since the run began",
        "config.json of the base model has changed since the run began",
        "merges.txt of the base model has gone since the run began",
        "put it back as it was, or start a new run with --fresh",
    ]


def test_a_run_from_before_the_files_were_kept_is_resumed(folder: Path) -> None:
    old = {field: value for field, value in marks(folder).items() if not field.startswith(checkpoint.BASE)}
    checkpoint.refuse_mismatch(old, marks(folder))


def job(folder: Path, run: Path, files: dict[str, str]) -> Job:
    base = BaseOfRun(name="b", path=folder, kind="folder", files=files)
    return Job(run=Run(run), settings=a_settings(), facts=some_facts(base=base))


def test_an_adapter_is_not_merged_into_a_base_that_changed(folder: Path, tmp_path: Path) -> None:
    put_adapter(tmp_path / "run")
    asked = job(folder, tmp_path / "run", base_files.digests(folder, "folder"))
    assert asked.base == folder
    write(folder / safetensors_file.WHOLE, {**BASE, "model.norm.weight": ("BF16", (9,))})
    with pytest.raises(RunError) as caught:
        _ = asked.base
    assert caught.value.message == (
        f"model.safetensors of the base model in {folder} is not what was trained on; put it back as it was, or train again"
    )
    assert "the adapter is safe in" in caught.value.safe
    assert job(folder, tmp_path / "run", {}).base == folder, "a run from before they were kept"
