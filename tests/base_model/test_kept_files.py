"""Which files of a model folder are read and copied (training/base_model/kept_files.py): no link that leads out, no pipe, a list."""

from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from tests.support.folders import folder
from training import base_model
from training.base_model import BaseModel, kept_files
from training.errors import UserError
from training.evaluation.target import Target
from training.settings.table import Model
from training.system import foreign_code, paths

SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"


@pytest.fixture(autouse=True)
def untrusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """No settings were read yet."""
    monkeypatch.delenv(foreign_code.SWITCH, raising=False)


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    """A private file, which only its owner may read."""
    file = tmp_path / "home" / ".ssh" / "id_ed25519"
    file.parent.mkdir(parents=True)
    file.write_text(SECRET)
    file.chmod(0o600)
    return file


def locate(path: Path) -> BaseModel:
    return base_model.locate(Model(base_model_name=str(path)))


def names(files: list[Path]) -> set[str]:
    return {file.name for file in files}


# ---- the list --------------------------------------------------------------------------------------------------------


def test_a_copy_holds_what_a_model_is_read_with_and_what_its_licence_asks_for_and_nothing_else(tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    wanted = {
        *("generation_config.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
        *("vocab.json", "vocab.txt", "merges.txt", "tokenizer.model", "spiece.model", "qwen.tiktoken", "tekken.json"),
        *("chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json"),
        *("LICENSE", "LICENCE.txt", "Notice.txt", "USE_POLICY.md", "COPYING"),
    }
    others = {"notes.txt", "id_ed25519", ".env", "README.md", "tokenizer_x.py", "x.json", "training_args.bin", "run.sh"}
    for name in wanted | others:
        (model / name).write_text("{}")
    assert names(kept_files.kept(model)) == wanted | {"config.json", "tokenizer.json"}
    assert kept_files.left_out(model) == ["id_ed25519", "notes.txt", "run.sh", "tokenizer_x.py", "x.json"]


def test_the_python_files_of_a_trusted_model_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = folder(tmp_path / "m")
    (model / "tokenizer_x.py").write_text("")
    assert "tokenizer_x.py" not in names(kept_files.kept(model) + kept_files.tokenizer_files(model))
    monkeypatch.setenv(foreign_code.SWITCH, "1")
    assert "tokenizer_x.py" in names(kept_files.kept(model)) & names(kept_files.tokenizer_files(model))


def test_a_licence_as_large_as_a_model_is_none(tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    with (model / "LICENSE").open("wb") as file:
        file.truncate(kept_files.TERMS_SIZE + 1)
    assert "LICENSE" not in names(kept_files.kept(model))
    assert kept_files.left_out(model) == ["LICENSE"]


# ---- links -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LICENSE", "NOTICE", "USE_POLICY.txt"])
def test_a_licence_that_is_a_link_to_a_private_file_is_left_out(name: str, tmp_path: Path, secret: Path) -> None:
    model = folder(tmp_path / "m")
    (model / name).symlink_to(secret)
    locate(model)
    assert name not in names(kept_files.kept(model))
    assert kept_files.left_out(model) == [name]


@pytest.mark.parametrize(
    "name",
    [
        *("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "config.json", "generation_config.json"),
        *("vocab.txt", "merges.txt", "tokenizer.model", "preprocessor_config.json", "model.safetensors.index.json"),
        "additional_chat_templates/tools.jinja",
    ],
)
def test_a_file_that_a_model_is_read_with_and_is_a_link_to_another_file_is_refused_by_name(
    name: str, tmp_path: Path, secret: Path
) -> None:
    model = folder(tmp_path / "m")
    secret.write_text((model / "config.json").read_text())
    (model / name).unlink(missing_ok=True)
    (model / name).parent.mkdir(exist_ok=True)
    (model / name).symlink_to(secret)
    with pytest.raises(UserError, match=f"{name} is a link out of the folder, to a file with another name"):
        locate(model)


@pytest.mark.parametrize(
    "steps",
    ["relative", "through a folder that is a link", "up from there", "a link to a link", "round about"],
)
def test_no_way_round_leads_a_link_out_of_the_folder(steps: str, tmp_path: Path, secret: Path) -> None:
    model = folder(tmp_path / "m")
    link = model / "LICENSE"
    if steps == "relative":
        link.symlink_to("../home/.ssh/id_ed25519")
    elif steps == "through a folder that is a link":
        (model / "texts").symlink_to(secret.parent)
        link.symlink_to("texts/id_ed25519")
    elif steps == "up from there":  # which is not where the text of the link seems to lead
        (model / "texts").symlink_to(secret.parent)
        secret.rename(secret.parent.parent / "key")
        link.symlink_to("texts/../key")
    elif steps == "a link to a link":
        (model / "texts").mkdir()
        (model / "texts" / "LICENSE").symlink_to(secret)
        link.symlink_to("texts/LICENSE")
    else:
        link.symlink_to("texts/../../home/.ssh/id_ed25519")
        (model / "texts").mkdir()
    assert link.read_text() == SECRET
    assert "LICENSE" not in names(kept_files.kept(model))


def test_a_link_that_goes_round_in_a_circle_and_one_to_nothing_are_told_by_name(tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    (model / "merges.txt").symlink_to("merges.txt")
    (model / "model-2.safetensors").symlink_to("/nowhere/x.safetensors")
    with pytest.raises(UserError) as caught:
        locate(model)
    assert len(caught.value.problems) == 2
    assert (
        "model-2.safetensors is a link to /nowhere/x.safetensors, which is not there; download the model again"
        in str(caught.value)
    )


def test_a_tokenizer_is_taken_from_the_folder_and_from_no_other(tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    names_of = model / "tokenizer_config.json"
    names_of.write_text('{"fast_tokenizer_files": ["tokenizer.4.0.json"]}')
    (model / "tokenizer.4.0.json").write_text("{}")
    locate(model)
    assert "tokenizer.4.0.json" in names(kept_files.kept(model)) & names(kept_files.tokenizer_files(model))
    names_of.write_text('{"fast_tokenizer_files": ["../tokenizer.4.0.json"]}')
    with pytest.raises(UserError, match=r"takes the tokenizer from another folder \(../tokenizer.4.0.json\)"):
        locate(model)
    for wrong in ("[]", "{", '{"fast_tokenizer_files": 1}', '{"fast_tokenizer_files": [1]}'):
        names_of.write_text(wrong)
        with pytest.raises(UserError, match="tokenizer_config.json"):
            locate(model)


def test_a_folder_of_links_to_a_shared_store_is_a_model(tmp_path: Path) -> None:
    store = folder(tmp_path / "store")
    (store / "LICENSE").write_text("free")
    model = tmp_path / "mine"
    model.mkdir()
    for file in store.iterdir():
        (model / file.name).symlink_to(file)
    (model / "model.safetensors").unlink()
    (model / "model.safetensors").symlink_to(store / "model.safetensors")
    assert locate(model).parameters == 15
    assert names(kept_files.kept(model)) == {"config.json", "tokenizer.json", "LICENSE"}


def test_weights_may_be_a_link_to_a_file_with_any_name(tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    (model / "model.safetensors").rename(tmp_path / "llama.safetensors")
    (model / "model.safetensors").symlink_to(tmp_path / "llama.safetensors")
    assert locate(model).parameters == 15


def hub_cache(path: Path) -> Path:
    """The folder of a model in the Hub's cache: links to blobs that are called as their content's SHA-256."""
    snapshot, blobs = path / "models--org--m" / "snapshots" / ("a" * 40), path / "models--org--m" / "blobs"
    made = folder(path / "made")
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(made.iterdir()):
        file.rename(blobs / f"{number:064x}")
        (snapshot / file.name).symlink_to(f"../../blobs/{number:064x}")
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed_also_from_another_folder(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    assert locate(snapshot).parameters == 15
    assert names(kept_files.kept(snapshot)) == {"config.json", "tokenizer.json"}
    mine = tmp_path / "mine"
    mine.mkdir()
    for file in snapshot.iterdir():
        (mine / file.name).symlink_to(file)
    assert locate(mine).parameters == 15


def test_a_template_in_a_folder_of_its_own_in_the_hubs_cache_is_no_link_elsewhere(tmp_path: Path) -> None:
    snapshot = hub_cache(tmp_path)
    blob = tmp_path / "models--org--m" / "blobs" / ("f" * 64)
    blob.write_text("{{ messages }}")
    (snapshot / "additional_chat_templates").mkdir()
    (snapshot / "additional_chat_templates" / "tool_use.jinja").symlink_to(f"../../../blobs/{blob.name}")
    assert kept_files.problems(snapshot) == []


def test_a_folder_that_looks_like_the_hubs_cache_leads_no_link_elsewhere(tmp_path: Path, secret: Path) -> None:
    snapshot = hub_cache(tmp_path)
    blobs = tmp_path / "models--org--m" / "blobs"
    (blobs / "key").symlink_to(secret)
    (snapshot / "LICENSE").symlink_to("../../blobs/key")
    assert "LICENSE" not in names(kept_files.kept(snapshot))
    (snapshot / "NOTICE").symlink_to("../../blobs/id_ed25519")
    blobs.rename(blobs.with_name("gone"))
    blobs.symlink_to(secret.parent)
    assert (snapshot / "NOTICE").read_text() == SECRET
    assert "NOTICE" not in names(kept_files.kept(snapshot))


# ---- what is no file -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model-2.safetensors", "tokenizer.json", "LICENSE", "special_tokens_map.json", "any"])
def test_a_named_pipe_in_a_model_folder_is_refused_and_never_opened(name: str, tmp_path: Path) -> None:
    model = folder(tmp_path / "m")
    (model / name).unlink(missing_ok=True)
    os.mkfifo(model / name)
    with pytest.raises(UserError, match=f"m: {name} is a named pipe and no file; take it away"):
        locate(model)
    assert name not in names(kept_files.kept(model))


def test_a_device_a_socket_and_a_pipe_among_the_templates_are_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = folder(tmp_path / "m")
    (model / "merges.txt").symlink_to("/dev/zero")
    (model / "additional_chat_templates").mkdir()
    os.mkfifo(model / "additional_chat_templates" / "tools.jinja")
    monkeypatch.chdir(model)  # a socket's path has a hundred characters at most
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("s")
    with pytest.raises(UserError) as caught:
        locate(model)
    for said in ("merges.txt is a device", "tools.jinja is a named pipe", "s is a socket"):
        assert said in str(caught.value)


def test_what_is_to_be_asked_is_refused_where_it_is_or_holds_a_named_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.gguf")
    with pytest.raises(UserError, match=r"--lora-model .*x.gguf: x.gguf is a named pipe and no file"):
        Target.named(str(tmp_path / "x.gguf"), "base", tmp_path / "config.ini")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "x"}))
    os.mkfifo(adapter / "adapter_model.safetensors")
    with pytest.raises(UserError, match="adapter_model.safetensors is a named pipe"):
        Target.named(str(adapter), None, Path(paths.ROOT) / "config.ini")


# ---- modes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("mode", "copied"), [(0o600, 0o600), (0o640, 0o640), (0o644, 0o644), (0o400, 0o600)])
def test_a_copy_is_readable_by_nobody_who_could_not_read_the_file(mode: int, copied: int, tmp_path: Path) -> None:
    source, target = tmp_path / "a", tmp_path / "b"
    source.write_text("x")
    source.chmod(mode)
    before = os.umask(0o022)
    try:
        kept_files.copy(source, target)
    finally:
        os.umask(before)
    assert stat.S_IMODE(target.stat().st_mode) == copied
