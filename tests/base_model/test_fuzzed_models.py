"""Whatever stands in a model's weights, its tokenizer and a Hub's answers ends in words, and soon. --fuzz N for more."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.support.folders import folder
from tests.support.fuzz import spoiled_json
from tests.support.hubs import Hub
from tests.support.paths import ROOT
from training import base_model
from training.base_model import safetensors_file
from training.errors import RunError, UserError

SEED = 7
LONGEST = 20.0  # seconds of one file


def test_any_damage_to_the_header_of_weights_ends_in_words(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    chance, file = random.Random(SEED), tmp_path / "model.safetensors"
    shapes = {"a.weight": ("BF16", (3, 5)), "b.bias": ("F32", (4,)), "c": ("I64", ())}
    whole = safetensors_file.encode_header(shapes, {"format": "pt"})
    data = bytes(30 + 16 + 8)
    for _ in range(4 * pytestconfig.getoption("--fuzz")):
        if chance.random() < 0.5:
            header = spoiled_json(whole[8:].strip(), chance)
            raw = len(header).to_bytes(8, "little") + header + data
        else:
            spoiling = bytearray(whole + data)
            at = chance.randrange(len(whole))
            spoiling[at : at + 8] = chance.choice((bytes(8), b"\xff" * 8, chance.randbytes(8)))
            raw = bytes(spoiling)
        file.write_bytes(raw[: chance.choice((len(raw), chance.randrange(len(raw))))])
        try:
            found = safetensors_file.tensors(tmp_path)
        except RunError as error:
            assert str(file) in str(error)
        else:  # what is taken lies in the file
            size = file.stat().st_size
            assert all(0 <= tensor.start <= tensor.start + tensor.size <= size for tensor in found.values())
            assert all(isinstance(number, int) and number >= 0 for t in found.values() for number in t.shape)


@pytest.mark.tiny
def test_any_damage_to_a_tokenizer_ends_in_words(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    chance = random.Random(SEED)
    words = Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2, "Ġ": 3, "<e>": 4, "<u>": 5}, [("a", "b")], unk_token="<u>"))
    words.pre_tokenizer, words.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words.add_special_tokens(["<e>", "<u>"])
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<e>",
        "model_max_length": 9,
        "chat_template": "x",
    }
    whole = {
        "tokenizer.json": words.to_str().encode(),
        "tokenizer_config.json": json.dumps(settings).encode(),
        "special_tokens_map.json": b'{"eos_token": {"content": "<e>", "lstrip": false}}',
    }
    path = folder(tmp_path / "m")
    for _ in range(pytestconfig.getoption("--fuzz")):
        for name, raw in whole.items():
            (path / name).write_bytes(raw)
        name = chance.choice(list(whole))
        (path / name).write_bytes(spoiled_json(whole[name], chance))
        began = time.monotonic()
        try:
            # As every program does it: the small files first.
            base_model.locate(base_model_settings(path))
            base_model.load_tokenizer(path)
        except UserError as error:
            assert str(path) in str(error)
        assert time.monotonic() - began < LONGEST


def base_model_settings(path: Path) -> object:
    from training.settings.table import Model

    return Model(base_model_name=str(path), revision=None, trust_remote_code=False)


# Asks the Hub again and again, each time with an empty cache; tells what was no message of ours.
ASK = """
import shutil, sys, traceback
from pathlib import Path
from training.base_model import sources
from training.errors import FinetuneError
from training.settings.table import Model
home, times = Path(sys.argv[1]), int(sys.argv[2])
for number in range(times):
    shutil.rmtree(home / "hub", ignore_errors=True)
    try:
        model = Model(base_model_name="org/good", revision=None, trust_remote_code=False)
        sources.locate(model, lambda text: None, weights=number % 2 == 0)
        print("taken")
    except FinetuneError as error:
        print("refused", error.exit_code)
    except Exception:
        print("traceback", number)
        traceback.print_exc()
"""


@pytest.mark.tiny
def test_whatever_a_hub_answers_ends_in_words(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    chance, good = random.Random(SEED), folder(tmp_path / "served")
    hub = Hub({"org/good": {file.name: file.read_bytes() for file in good.iterdir()}})
    hub.spoil = lambda raw: spoiled_json(raw, chance) if raw.startswith((b"{", b"[")) and chance.random() < 0.2 else raw
    times = max(30, pytestconfig.getoption("--fuzz") // 5)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGING")) and "proxy" not in k.lower()}
    home = {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": hub.address, "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-c", ASK, str(tmp_path / "home"), str(times)]
    done = subprocess.run(command, cwd=ROOT, env=clean | home, capture_output=True, text=True, timeout=60 + times)
    hub.server.shutdown()
    said = done.stdout.splitlines()
    assert (done.returncode, len(said)) == (0, times), done.stderr
    assert set(said) <= {"taken", "refused 2", "refused 3"}, done.stderr
    assert {"taken", "refused 3"} <= set(said)
