"""The doors of BASE_MODEL_NAME (training/base_model/sources.py, model_folder.py, ollama_store.py, hub.py)."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.support.folders import CONFIG, folder
from tests.support.hubs import Hub
from tests.support.paths import ROOT
from training import base_model
from training.base_model import model_folder, ollama_store, safetensors_file, sources
from training.base_model.ollama_store import Stored
from training.errors import MachineError, UserError
from training.settings.table import Model
from training.system import files

TOKEN = "hf_secretsecretsecretsecret"


def settings(name: object, revision: str | None = None, trust_remote_code: bool = False) -> Model:
    return Model(base_model_name=str(name), revision=revision, trust_remote_code=trust_remote_code)


# ---- folders ---------------------------------------------------------------------------------------------------------


def test_a_folder_is_described_without_loading_it(tmp_path: Path) -> None:
    found = base_model.locate(settings(folder(tmp_path / "m")))
    assert (found.path, found.kind, found.parameters, found.max_length) == (tmp_path / "m", "folder", 15, 512)


@pytest.mark.tiny
def test_the_doors_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom training.settings.table import Model as N\nfrom training.base_model import sources\n"
        "sources.locate(N(base_model_name=sys.argv[1], revision=None, trust_remote_code=False))\n"
        "print('torch' in sys.modules)"
    )
    model = folder(tmp_path / "m")
    done = subprocess.run([sys.executable, "-c", code, model], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_a_run_stands_for_its_merged_model(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.json").write_text("{}")
    with pytest.raises(UserError, match="a run without a merged model"):
        base_model.locate(settings(tmp_path / "run"))
    folder(tmp_path / "run" / "merged")
    assert base_model.locate(settings(tmp_path / "run")).path == tmp_path / "run" / "merged"
    assert base_model.locate(settings(tmp_path / "run" / "merged")).path == tmp_path / "run" / "merged"


def spoil(path: Path, kind: str) -> None:
    """Make a good folder bad in one way."""
    model = path / "model.safetensors"
    if kind == "no weights":
        model.unlink()
    elif kind == "pickle":
        model.rename(path / "pytorch_model.bin")
    elif kind == "cut":
        model.write_bytes(model.read_bytes()[:-3])
    elif kind == "shard":
        model.rename(path / "model-00002-of-00002.safetensors")
        files.write_json(path / safetensors_file.INDEX, {"weight_map": {"a": "model-00001-of-00002.safetensors"}})
    elif kind == "no index":
        model.rename(path / "model-00001-of-00002.safetensors")
    elif kind == "other name":
        shutil.copy(model, path / "b.safetensors")
        model.rename(path / "a.safetensors")
    elif kind == "link":
        model.unlink()
        model.symlink_to("../../blobs/deadbeef")
    elif kind == "only an adapter":
        model.rename(path / "adapter_model.safetensors")
    elif kind == "only litter":
        model.rename(path / "._model.safetensors")
    elif kind == "tokenizer":
        (path / "tokenizer.json").unlink()
    elif kind == "adapter":
        (path / "config.json").unlink()
        files.write_json(path / "adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen3-0.6B"})
    elif kind == "gguf":
        (path / "config.json").unlink()
        (path / "x.gguf").write_bytes(b"GGUF")
    elif kind == "config":
        (path / "config.json").write_text("{")
    elif kind == "empty":
        (path / "config.json").unlink()


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("no weights", "holds no safetensors weights"),
        ("pickle", r"its weights are pickled \(pytorch_model.bin\), which can run code when read"),
        ("cut", "is cut short: a.weight ends beyond its"),
        ("shard", "lacks model-00001-of-00002.safetensors, which its index names"),
        ("no index", "holds model-00001-of-00002.safetensors without model.safetensors.index.json, by which"),
        (
            "other name",
            r"holds no model.safetensors, the only name .*; rename the right one of a.safetensors, b.safeten",
        ),
        ("link", "model.safetensors is a link to ../../blobs/deadbeef, which is not there; download the model again"),
        (
            "only an adapter",
            r"its only weights are a LoRA adapter's \(adapter_model.safetensors\); name the model that it",
        ),
        ("only litter", "holds no safetensors weights"),
        ("tokenizer", r"it has no tokenizer \(none of tokenizer.json"),
        ("adapter", "is a LoRA adapter, no model: name the folder where it was merged, or Qwen/Qwen3-0.6B"),
        ("gguf", "holds no config.json, but x.gguf: name that file"),
        ("config", "config.json cannot be read"),
        ("empty", "is no model folder: it holds no config.json"),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused(kind: str, said: str, tmp_path: Path) -> None:
    spoil(folder(tmp_path / "m"), kind)
    with pytest.raises(UserError, match=said) as caught:
        base_model.locate(settings(tmp_path / "m"))
    assert str(tmp_path / "m") in str(caught.value)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, r"quantized already \(bitsandbytes\)"),
        (
            {"model_type": "own", "auto_map": {"AutoModel": "x.Y"}},
            '"own" is Python code that comes with it; TRUST_REMOTE_',
        ),
        (
            {"model_type": "qwen9"},
            r'architecture "qwen9" is unknown to the installed transformers; did you mean "qwen\d?',
        ),
        ({"model_type": None}, "has no model_type"),
        (
            {"transformers_weights": "own.safetensors"},
            r"names its weights itself \(transformers_weights = own.safetensors\), .* call the file model.safetensors",
        ),
        ({"architectures": ["BertForMaskedLM"]}, "BertForMaskedLM is no model that continues a text"),
    ],
)
def test_a_config_that_cannot_be_trained_is_refused(change: dict[str, Any], said: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=said):
        base_model.locate(settings(folder(tmp_path / "m", **change)))


def test_code_that_comes_with_a_model_runs_only_when_it_is_trusted(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", model_type="own", auto_map={"AutoModel": "x.Y"})
    assert base_model.locate(settings(path, trust_remote_code=True)).config["model_type"] == "own"


def test_everything_wrong_with_a_folder_is_told_at_once(tmp_path: Path) -> None:
    path = folder(tmp_path / "m", quantization_config={"quant_method": "gptq"})
    spoil(path, "tokenizer")
    spoil(path, "cut")
    with pytest.raises(UserError) as caught:
        model_folder.check(path)
    assert len(caught.value.problems) == 3


def test_a_path_that_does_not_exist_gets_a_hint(tmp_path: Path) -> None:
    folder(tmp_path / "my-model")
    with pytest.raises(UserError, match=rf"does not exist; did you mean {tmp_path}/my-model\?"):
        base_model.locate(settings(tmp_path / "my-modle"))
    with pytest.raises(UserError, match=rf"{tmp_path} exists, without zzz"):
        base_model.locate(settings(tmp_path / "zzz" / "deeper.gguf"))


# ---- Ollama's store --------------------------------------------------------------------------------------------------


def store(home: Path, place: str, content: bytes, media: str = ollama_store.MODEL) -> Path:
    """An Ollama store with one model, as `ollama pull` lays it out."""
    digest = hashlib.sha256(content).hexdigest()
    blob = home / "blobs" / f"sha256-{digest}"
    blob.parent.mkdir(parents=True, exist_ok=True)
    blob.write_bytes(content)
    manifest = home / "manifests" / place
    manifest.parent.mkdir(parents=True, exist_ok=True)
    template = {"mediaType": "application/vnd.ollama.image.template", "digest": "sha256:00", "size": 1}
    layers = [template, {"mediaType": media, "digest": f"sha256:{digest}", "size": len(content)}]
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return blob


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("qwen3:0.6b", "registry.ollama.ai/library/qwen3/0.6b"),
        ("ollama:qwen3:0.6b", "registry.ollama.ai/library/qwen3/0.6b"),
        ("ollama:qwen3", "registry.ollama.ai/library/qwen3/latest"),
        ("me/tuned:v1", "registry.ollama.ai/me/tuned/v1"),
        ("hf.co/org/model:Q4_K_M", "hf.co/org/model/Q4_K_M"),
    ],
)
def test_a_tag_leads_to_its_blob(name: str, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    blob = store(tmp_path, place, b"GGUF....")
    assert base_model.door(name) == "ollama"
    assert ollama_store.find(name) == Stored(blob, blob.name.removeprefix("sha256-"))


def test_the_users_store_is_found_without_a_setting(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_MODELS", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    blob = store(tmp_path / ".ollama" / "models", "registry.ollama.ai/library/qwen3/0.6b", b"GGUF....")
    assert ollama_store.find("qwen3:0.6b").blob == blob


def test_without_a_home_folder_a_tag_is_looked_for_where_else_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def expanduser(path: Path) -> Path:
        if path.parts[:1] == ("~",):
            raise RuntimeError("Could not determine home directory.")
        return path

    monkeypatch.setattr(Path, "expanduser", expanduser)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    blob = store(tmp_path, "registry.ollama.ai/library/qwen3/0.6b", b"GGUF....")
    assert ollama_store.find("qwen3:0.6b").blob == blob
    monkeypatch.delenv("OLLAMA_MODELS")
    with pytest.raises(UserError, match="is not in the Ollama store"):
        ollama_store.find("qwen3:0.6b")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("qwen3:0.6b", r"on the Hub it is Qwen/Qwen3-0\.6B: set BASE_MODEL_NAME = Qwen/Qwen3-0\.6B"),
        ("qwen3:0.6b-personal-20260214", r"on the Hub it is Qwen/Qwen3-0\.6B"),
        ("llama3.2", "on the Hub it is meta-llama/Llama-3.2-3B-Instruct"),
        (
            "assistant",
            r"^assistant is no folder here \(write ./assistant, or its whole path\) and not in the Ollama store \(.*\); "
            "a Hub id is written org/name, or `ollama pull assistant` first$",
        ),
        ("nothing:1b", "a Hub id is written org/name, or `ollama pull nothing:1b` first"),
        ("ollama:../../etc:x", "is no name of an Ollama model"),
    ],
)
def test_a_tag_that_is_not_stored_names_the_hub_id(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UserError, match=said):
        base_model.locate(settings(name))


MIXTURE = "Qwen/qwen3:0.6b-Instruct"  # an owner on the Hub before a tag of Ollama, as one guide has it


def test_a_mixture_of_two_names_is_the_model_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    asked, said = [], []

    def download(name: str, *_: object) -> tuple[Path, str]:
        asked.append(name)
        raise MachineError("the Hub cannot be reached")

    monkeypatch.setattr("training.base_model.hub.download", download)
    assert base_model.door(MIXTURE) == "hub"
    with pytest.raises(MachineError, match=f"^{MIXTURE} is Qwen/Qwen3-0.6B on the Hub: the Hub cannot be reached$"):
        base_model.locate(settings(MIXTURE), said.append)
    assert (asked, said) == (["Qwen/Qwen3-0.6B"], [f"{MIXTURE} is Qwen/Qwen3-0.6B on the Hub"])


def test_a_mixture_of_two_names_that_ollama_has_is_ollamas(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    store(tmp_path, "registry.ollama.ai/Qwen/qwen3/0.6b-Instruct", b"GGUF....")
    assert base_model.door(MIXTURE) == "ollama"
    assert base_model.door("me/qwen3:0.6b") == "ollama"  # the name of somebody's own model


def test_a_damaged_store_is_said_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    blob = store(tmp_path, "registry.ollama.ai/library/a/1", b"GGUF....")
    blob.write_bytes(b"GG")
    with pytest.raises(UserError, match=r"a:1: its weights are not whole .*`ollama pull` it again"):
        ollama_store.find("a:1")
    store(tmp_path, "registry.ollama.ai/library/b/1", b"GGUF....", "application/other")
    with pytest.raises(UserError, match="is no manifest of a model"):
        ollama_store.find("b:1")


MODEL_LAYER = {"mediaType": ollama_store.MODEL, "digest": "sha256:00", "size": 1}


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ("", "cannot be read as JSON"),
        ("[" * 100_000, "nested more than"),
        ("[]", r"is not a JSON object: it holds \[\]"),
        ("{}", ""),
        ('{"layers": 7}', "layers = 7 is no list of objects"),
        ('{"layers": [7]}', r"layers = \[7\] is no list of objects"),
        ('{"layers": [{}]}', ""),
        *(
            (json.dumps({"layers": [MODEL_LAYER | {field: value}]}), f"{field} = .* is no (text|digest|whole number)")
            for field, value in (("digest", 7), ("digest", "sha256:../../x"), ("size", "1"), ("mediaType", []))
        ),
    ],
)
def test_a_manifest_that_is_none_is_told_with_the_field(
    content: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))
    manifest = tmp_path / "manifests" / "registry.ollama.ai" / "library" / "a" / "1"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(content)
    with pytest.raises(
        UserError, match=rf"^a:1: {manifest} is no manifest of a model.*{why}.*: `ollama pull` it again$"
    ):
        ollama_store.find("a:1")


@pytest.mark.parametrize("content", ["", "[" * 100_000, "[]", "7", '{"version": []}', "\xff"])
def test_an_unpacked_folder_whose_mark_is_something_else_is_not_taken(
    content: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.gguf import byte_vocabulary, model_pairs, model_tensors, write_gguf

    vocabulary = byte_vocabulary("qwen2")
    gguf = write_gguf(tmp_path / "own.gguf", model_pairs(vocabulary), model_tensors(vocabulary))
    monkeypatch.setattr(sources, "MODELS", tmp_path / "models")
    unpacked = folder(tmp_path / "models" / f"own-{files.sha256(gguf)[:12]}")
    mark = {"version": sources.VERSION, "file": gguf.name, "bytes": gguf.stat().st_size}
    (unpacked / sources.SOURCE).write_text(json.dumps(mark))
    assert sources.peek(settings(gguf)).size == 0
    (unpacked / sources.SOURCE).write_text(content, encoding="latin-1")
    assert sources.peek(settings(gguf)).size > 0


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    good = folder(tmp_path / "served")
    content = {file.name: file.read_bytes() for file in good.iterdir()}
    large = content | {
        "model.safetensors": safetensors_file.encode_header({"a": ("BF16", (3000, 4000))}, {}) + bytes(24_000_000)
    }
    served = {
        "org/good": content | {"README.md": b"#", "original/x.safetensors": b"x" * 9, "pytorch_model.bin": b"pickle"},
        "org/large": large,
        "org/gated": content,
        "org/broken": content,
        "org/pickled": {name: raw for name, raw in content.items() if "safetensors" not in name} | {"a.bin": b"x"},
        "org/quantized": content
        | {"config.json": json.dumps(CONFIG | {"quantization_config": {"quant_method": "awq"}}).encode()},
    }
    running = Hub(served)
    yield running
    running.server.shutdown()


def ask(hub: Hub | str, home: Path, name: str, revision: str = "", look: bool = False, **environment: str) -> Any:
    """locate(), without weights where `look`, in a process of its own, because huggingface_hub reads its settings when it is imported."""
    code = (
        "import json, sys\nfrom training.settings.table import Model as N\nfrom training.base_model import sources\n"
        "from training.errors import FinetuneError\n"
        "model = N(base_model_name=sys.argv[1], revision=sys.argv[2] or None, trust_remote_code=False)\n"
        "try:\n"
        "    say = lambda text: print(text, file=sys.stderr)\n"
        "    found = sources.locate(model, say, weights=not sys.argv[3])\n"
        "    print(json.dumps(vars(found), default=str))\n"
        "except FinetuneError as error:\n"
        "    print(error, file=sys.stderr)\n"
        "    sys.exit(error.exit_code)\n"
    )
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    address = hub if isinstance(hub, str) else hub.address
    clean |= {"HF_HOME": str(home), "HF_ENDPOINT": address, "HF_HUB_DISABLE_TELEMETRY": "1", **environment}
    done = subprocess.run(
        [sys.executable, "-c", code, name, revision, "1" if look else ""],
        cwd=ROOT, env=clean, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stderr + done.stdout
    return SimpleNamespace(code=done.returncode, said=done.stderr, found=json.loads(done.stdout or "null"))


@pytest.mark.tiny
def test_a_hub_id_is_downloaded_with_the_files_that_training_needs(hub: Hub, tmp_path: Path) -> None:
    done = ask(hub, tmp_path / "home", "org/good", HF_TOKEN=TOKEN)
    assert (done.code, done.found["revision"], done.found["parameters"]) == (0, "a" * 40, 15)
    names = {file.name for file in Path(done.found["path"]).iterdir()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json"}


@pytest.mark.tiny
def test_a_revision_is_honoured_and_a_wrong_one_named(hub: Hub, tmp_path: Path) -> None:
    assert ask(hub, tmp_path / "home", "org/good", "v2").found["revision"] == "b" * 40
    done = ask(hub, tmp_path / "home", "org/good", "v3")
    assert done.code == 3
    assert "org/good has no revision v3: see its branches and tags at" in done.said


@pytest.mark.tiny
def test_a_plan_leaves_the_weights_on_the_hub_and_says_what_a_run_would_get(hub: Hub, tmp_path: Path) -> None:
    done = ask(hub, tmp_path / "home", "org/large", look=True)
    assert (done.code, done.found["max_length"], done.found["revision"]) == (0, 512, "a" * 40)
    assert done.found["parameters"] == sum(map(math.prod, model_folder.laid_out(CONFIG).values())) > 0
    assert {file.name for file in Path(done.found["path"]).iterdir()} == {"config.json", "tokenizer.json"}
    assert not any("model.safetensors" in request for request in hub.requests)
    said = f"org/large is not here yet: a run gets 24 MB from {hub.address} first, this check does not"
    assert said in done.said
    ask(hub, tmp_path / "home", "org/good")
    there = ask(hub, tmp_path / "home", "org/good", look=True)
    assert (Path(there.found["path"]) / "model.safetensors").is_file()
    assert "is not here yet" not in there.said


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("name", "token", "code", "said"),
    [
        ("org/gated", "", 3, "org/gated is gated: ask for access at .* then set HF_TOKEN .*not set"),
        ("org/gated", TOKEN, 3, r"org/gated is gated: .*set, but not enough"),
        ("org/nothing", "", 3, "knows no org/nothing: check the spelling; a private model needs HF_TOKEN"),
        ("org/nothing", TOKEN, 3, "knows no org/nothing: .*HF_TOKEN may lack the right"),
        ("org/broken", "", 3, r"fails on org/broken \(HTTP 500\): try again later"),
        ("org/pickled", "", 2, r"org/pickled holds pickled weights only \(.bin\)"),
        ("org/quantized", "", 2, "org/quantized: its weights are quantized already"),
    ],
)
def test_each_refusal_says_what_to_do(name: str, token: str, code: int, said: str, hub: Hub, tmp_path: Path) -> None:
    done = ask(hub, tmp_path / "home", name, **({"HF_TOKEN": token} if token else {}))
    assert done.code == code
    assert re.search(said, done.said)
    assert not any("model.safetensors" in request for request in hub.requests)


@pytest.mark.tiny
@pytest.mark.parametrize(
    "page",
    [b"<html><form>Log in</form></html>", b"[]", b"", b"7", b"null", b'{"id": 7, "sha": [], "siblings": 7}',
     b'{"id": "org/good", "sha": "a", "siblings": [7]}', b"[" * 100_000],
)  # fmt: skip
def test_an_answer_that_is_not_the_hubs_is_said_to_be_a_proxys(page: bytes, hub: Hub, tmp_path: Path) -> None:
    hub.page = page
    done = ask(hub, tmp_path / "home", "org/good")
    assert done.code == 3
    said = f"the Hub ({hub.address}) answers with something else than its API: a proxy or a login page?"
    assert said in done.said


@pytest.mark.tiny
def test_a_cut_download_is_no_model_and_goes_on_where_it_stopped(hub: Hub, tmp_path: Path) -> None:
    hub.cut = 15_000_000  # huggingface_hub writes blocks of 10 MB
    done = ask(hub, tmp_path / "home", "org/large")
    hub.cut = 0
    if done.code:  # huggingface_hub itself may have gone on at once
        assert done.code == 3
        assert "a cut download goes on where it stopped" in done.said
        done = ask(hub, tmp_path / "home", "org/large")
    assert (done.code, done.found["parameters"]) == (0, 12_000_000)
    assert any(re.search(r"GET .*model.safetensors bytes=1\d{7}-", request) for request in hub.requests)


@pytest.mark.tiny
def test_without_a_network_the_copy_from_before_serves_and_a_new_model_does_not(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert ask(hub, home, "org/good").code == 0
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nowhere = f"http://user:{TOKEN}@127.0.0.1:{free.getsockname()[1]}"
    done = ask(nowhere, home, "org/good")
    assert (done.code, done.found["revision"]) == (0, "a" * 40)
    assert "using the copy downloaded before" in done.said
    done = ask(nowhere, home, "org/large")
    assert done.code == 3
    assert "cannot be reached for org/large: check the network or proxy, name a mirror in HF_ENDPOINT" in done.said


@pytest.mark.tiny
def test_offline_mode_takes_the_cache_alone(hub: Hub, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert ask(hub, home, "org/good").code == 0
    hub.requests.clear()
    assert ask(hub, home, "org/good", HF_HUB_OFFLINE="1").code == 0
    done = ask(hub, home, "org/large", HF_HUB_OFFLINE="1")
    assert done.code == 3
    assert "was never downloaded, and HF_HUB_OFFLINE is set" in done.said
    assert hub.requests == []


# ---- unpacking -------------------------------------------------------------------------------------------------------


def unpack_in(models: Path, wait: float = 0.0) -> subprocess.Popen[str]:
    """locate() of the embedded model into another folder, in a process of its own; a stand-in unpacks (the real one is
    tested in test_unpacking.py), slowly enough for two to meet."""
    code = (
        "import sys, time, pathlib\nfrom training.settings.table import Model as N\nfrom training.base_model import sources, unpacking_process\n"
        "sys.path.insert(0, 'tests')\nfrom tests.support.folders import folder\n"
        "sources.MODELS = pathlib.Path(sys.argv[1])\n"
        "def unpack(gguf, to, say):\n    folder(to)\n    time.sleep(float(sys.argv[2]))\n    print('unpacked')\n"
        "unpacking_process.unpack = unpack\n"
        "print(sources.locate(N(base_model_name=sources.EMBEDDED, revision=None, trust_remote_code=False)).path)"
    )
    return subprocess.Popen([sys.executable, "-c", code, models, str(wait)], cwd=ROOT, stdout=-1, stderr=-1, text=True)


@pytest.mark.tiny
def test_two_processes_that_unpack_at_once_unpack_once(tmp_path: Path) -> None:
    both = [unpack_in(tmp_path, 1.0) for _ in range(2)]
    said = [process.communicate(timeout=60)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sorted(text.count("unpacked\n") for text in said) == [0, 1]
    assert {text.splitlines()[-1] for text in said} == {str(tmp_path / "SmolLM2-135M-Instruct")}


@pytest.mark.tiny
def test_an_unpacking_that_was_killed_leaves_nothing_that_counts(tmp_path: Path) -> None:
    first = unpack_in(tmp_path, 30)
    while not list(tmp_path.glob("*.partial/model.safetensors")):
        assert first.poll() is None
    first.kill()
    first.communicate()
    assert not (tmp_path / "SmolLM2-135M-Instruct").exists()
    second = unpack_in(tmp_path)
    assert "unpacked" in second.communicate(timeout=60)[0]
    assert [path.name for path in tmp_path.iterdir() if not path.name.startswith(".")] == ["SmolLM2-135M-Instruct"]


@pytest.mark.tiny
def test_a_damaged_unpacked_folder_is_made_anew(tmp_path: Path) -> None:
    unpack_in(tmp_path).communicate(timeout=60)
    spoil(tmp_path / "SmolLM2-135M-Instruct", "cut")
    assert "unpacked" in unpack_in(tmp_path).communicate(timeout=60)[0]
    assert "unpacked" not in unpack_in(tmp_path).communicate(timeout=60)[0].splitlines()
    shutil.rmtree(tmp_path / "SmolLM2-135M-Instruct")


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_a_gguf_file_and_the_same_file_in_ollamas_store_open_one_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.gguf import byte_vocabulary, model_pairs, model_tensors, write_gguf

    vocabulary = byte_vocabulary("qwen2")
    gguf = write_gguf(tmp_path / "own.gguf", model_pairs(vocabulary), model_tensors(vocabulary))
    digest = files.sha256(gguf)
    monkeypatch.setattr(sources, "MODELS", tmp_path / "models")
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "store"))
    store(tmp_path / "store", "registry.ollama.ai/library/own/1b", gguf.read_bytes())
    before = sources.peek(settings(gguf))
    found, tagged = base_model.locate(settings(gguf)), base_model.locate(settings("own:1b"))
    assert (found.kind, found.path.name) == ("gguf", f"own-{digest[:12]}")
    assert (tagged.kind, tagged.path.name) == ("ollama", f"own-1b-{digest[:12]}")
    assert (before.parameters, before.max_length) == (found.parameters, 256)
    said: list[str] = []
    assert base_model.locate(settings(gguf), said.append) == found
    assert said == []  # unpacked once
    assert sources.peek(settings(gguf)).size == 0
