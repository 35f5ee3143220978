"""Base models from ModelScope, BASE_MODEL_NAME = ms:owner/name (training/base_model/modelscope.py), from a small one on loopback."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.at_hubs import led_to, nowhere, offline
from tests.support.folders import CONFIG, folder
from tests.support.hubs import COMMIT, ModelScope
from training import base_model
from training.base_model import BaseModel, ollama_store, safetensors_file, sources
from training.errors import MachineError, UserError
from training.settings.table import Model

TOKEN = "ms-secret-secret-secret"


@pytest.fixture
def scope(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModelScope]:
    good = folder(tmp_path / "served")
    content = {file.name: file.read_bytes() for file in good.iterdir()}
    weights = safetensors_file.encode_header({"a": ("BF16", (300, 400))}, {}) + bytes(240_000)
    foreign = {
        "README.md": b"#",
        "original/x.safetensors": b"x" * 9,
        "model.py": b"import os",
        "pytorch_model.bin": b"pickle",
    }
    quantised = json.dumps(CONFIG | {"quantization_config": {"quant_method": "awq"}}).encode()
    running = ModelScope(
        {
            "org/good": content | foreign,
            "org/large": content | {"model.safetensors": weights},
            "org/pickled": {name: raw for name, raw in content.items() if "safetensors" not in name} | {"a.bin": b"x"},
            "org/quantised": content | {"config.json": quantised},
            "org/odd": content | {"config.json": b"[" * 5000},
        }
    )
    led_to(monkeypatch, tmp_path, nowhere(), running)
    yield running
    running.server.shutdown()


def locate(name: str, revision: str | None = None, weights: bool = True, said: list[str] | None = None) -> BaseModel:
    model = Model(base_model_name=name, revision=revision)
    return base_model.locate(model, (said if said is not None else []).append, weights)


def test_a_model_is_downloaded_with_the_files_that_training_needs_at_its_commit(scope: ModelScope) -> None:
    found = locate("ms:org/good")
    assert (found.name, found.kind, found.revision, found.parameters) == ("ms:org/good", "modelscope", COMMIT, 15)
    assert {file.name for file in found.path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    asked = [query.get("FilePath") for _, query, _ in scope.requests]
    assert not {"model.py", "pytorch_model.bin", "README.md"} & set(asked)


def test_its_code_is_fetched_where_it_may_run_and_never_else(scope: ModelScope) -> None:
    found = base_model.locate(Model(base_model_name="ms:org/good", trust_remote_code=True))
    assert (found.path / "model.py").is_file()


def test_a_plan_leaves_the_weights_there_and_says_what_a_run_would_get(
    scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources.model_folder, "laid_out", lambda config: {"a": (3, 5)})
    said: list[str] = []
    found = locate("ms:org/large", weights=False, said=said)
    assert (found.revision, found.parameters, found.max_length) == (COMMIT, 15, 512)
    assert {file.name for file in found.path.iterdir()} == {"config.json", "tokenizer.json"}
    assert f"org/large is not here yet: a run gets 0 MB from {scope.address} first, this check does not" in said
    locate("ms:org/large")
    there = locate("ms:org/large", weights=False, said=(said := []))
    assert (there.path / "model.safetensors").is_file()
    assert not any("is not here yet" in line for line in said)


def test_a_peek_fetches_the_configuration_only(scope: ModelScope) -> None:
    found = sources.peek(Model(base_model_name="ms:org/large"))
    assert (found.kind, found.max_length) == ("modelscope", 512)
    assert found.size > 240_000
    assert [query["FilePath"] for _, query, _ in scope.requests if "FilePath" in query] == ["config.json"]


def test_a_cut_download_goes_on_where_it_stopped(scope: ModelScope) -> None:
    scope.cut, scope.cuts = 100_000, 1
    assert locate("ms:org/large").parameters == 120_000
    # The one that was redirected, and the one that it was redirected to.
    assert {headers["Range"] for _, _, headers in scope.requests if "Range" in headers} == {"bytes=100000-"}


@pytest.mark.parametrize(
    ("name", "error", "said"),
    [
        ("ms:org/nothing", MachineError, r"ModelScope \(.*\) knows no model org/nothing: check the spelling"),
        ("ms:org/pickled", UserError, r"org/pickled holds pickled weights only \(.bin\)"),
        ("ms:org/quantised", UserError, "org/quantised: its weights are quantized already"),
        ("ms:org/odd", UserError, "org/odd: config.json"),
    ],
)
def test_each_refusal_says_what_is_wrong_before_the_weights_are_fetched(
    name: str, error: type[Exception], said: str, scope: ModelScope
) -> None:
    with pytest.raises(error, match=said):
        locate(name)
    assert "model.safetensors" not in [query.get("FilePath") for _, query, _ in scope.requests]


def test_a_revision_is_honoured_and_a_wrong_one_named(scope: ModelScope) -> None:
    assert locate("ms:org/good", "v1").revision == COMMIT
    with pytest.raises(
        MachineError, match="org/good has no revision v3: see its branches and tags at http.*/models/org/good/files"
    ):
        locate("ms:org/good", "v3")


def test_without_a_network_the_copy_from_before_serves_and_a_new_model_does_not(
    scope: ModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    locate("ms:org/good")
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", f"http://me:{TOKEN}@{nowhere().removeprefix('http://')}")
    said: list[str] = []
    assert locate("ms:org/good", said=said).revision == COMMIT
    assert any("cannot be reached for org/good" in line for line in said)
    with pytest.raises(
        MachineError, match="the Hugging Face Hub may have it under the same name: BASE_MODEL_NAME = org/large$"
    ) as error:
        locate("ms:org/large")
    assert TOKEN not in str(error.value) + "".join(said)


def test_offline_the_cache_alone_serves(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    locate("ms:org/good")
    scope.requests.clear()
    offline(monkeypatch)
    assert locate("ms:org/good").revision == COMMIT
    assert locate("ms:org/good", weights=False).revision == COMMIT
    with pytest.raises(MachineError, match="org/large was never downloaded from ModelScope, and HF_HUB_OFFLINE is set"):
        locate("ms:org/large")
    assert scope.requests == []


def test_a_folder_too_full_to_be_listed_is_refused(scope: ModelScope, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.hubs.modelscope.MOST_IN_A_FOLDER", 3)
    with pytest.raises(
        UserError, match="org/good has 3 files or more in one folder, which ModelScope lists no further"
    ):
        locate("ms:org/good")


def test_a_name_on_modelscope_is_never_a_tag_of_ollama(
    scope: ModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "ollama"))
    assert sources.door("ms:Qwen/Qwen3-0.6B") == "modelscope"
    assert not ollama_store.is_stored("ms:Qwen/Qwen3-0.6B")


def test_the_hub_that_cannot_be_reached_names_modelscope(scope: ModelScope) -> None:
    with pytest.raises(
        MachineError,
        match=r"the Hub \(.*\) cannot be reached for org/good: .* ModelScope may have it under the same name: BASE_MODEL_NAME = ms:org/good$",
    ):
        locate("org/good")
