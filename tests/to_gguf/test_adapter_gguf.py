"""The adapter alone as GGUF: llama.cpp with it on the base predicts what the merged model predicts."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.paths import ROOT
from tests.support.programs import Ended, forked
from training import export, llama, runs
from training.errors import MachineError, RunError, UserError
from training.llama import gguf_file
from training.ollama import modelfile_syntax
from training.to_gguf import adapter_gguf, conversion, merging
from training.to_gguf.job import Job

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("forks")]

# llama.cpp with an adapter, through the worker's own code: llama/process.py offers no adapters, for nothing but this needs them.
WITH_ADAPTER = """
import ctypes, json, sys
sys.path.insert(0, sys.argv[1])
import llama_cpp, numpy
from training.llama import model as llama_worker

model = llama_worker.Model(sys.argv[2], False)
adapter = llama_cpp.llama_adapter_lora_init(model.model, sys.argv[3].encode())
assert adapter, "llama.cpp does not load the adapter"
enter = llama_worker._Context.__enter__
def entered(context):
    one = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(adapter)
    assert llama_cpp.llama_set_adapters_lora(context.pointer, one, 1, (ctypes.c_float * 1)(1.0)) == 0
    return enter(context)
llama_worker._Context.__enter__ = entered
parts = []
ids = json.loads(sys.argv[4])
model.logits([ids], [0], lambda event, content: parts.append(numpy.frombuffer(content, "f4").reshape(event["shape"])))
numpy.save(sys.argv[5], numpy.concatenate(parts))
"""
IDS = [504, 3575, 282, 4649, 314, 7042, 30, 198]


def trained(base: Path, folder: Path, **lora: Any) -> Path:
    """A PEFT adapter that changes the model clearly."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    settings = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "task_type": "CAUSAL_LM", **lora}
    model = get_peft_model(model, LoraConfig(**settings))
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name or "lora_embedding_B" in name:
                parameter.normal_(0, 0.1)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base_f16(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    return conversion.to_gguf(tiny_model, tmp_path_factory.mktemp("base") / "base.gguf")


@pytest.mark.parametrize(
    "lora",
    [{}, {"use_rslora": True, "rank_pattern": {"q_proj": 8}, "alpha_pattern": {"down_proj": 2}}],
    ids=["plain", "rank-stabilised, with patterns"],
)
def test_base_and_adapter_in_llama_cpp_predict_what_the_merged_model_predicts(
    lora: dict, tiny_model: Path, base_f16: Path, tmp_path: Path
) -> None:
    import numpy as np

    adapter = trained(tiny_model, tmp_path / "adapter", **lora)
    assert adapter_gguf.write(tiny_model, adapter, tmp_path / "a.gguf") == 14
    tensors = gguf_file.read(tmp_path / "a.gguf").tensors
    assert tensors["blk.0.attn_q.weight.lora_a"].kind_name == "F32"
    out = tmp_path / "logits.npy"
    command = [sys.executable, "-c", WITH_ADAPTER, ROOT, base_f16, tmp_path / "a.gguf", json.dumps(IDS), out]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    merging.merge(tiny_model, adapter, tmp_path / "merged")
    merged = llama.logits(conversion.to_gguf(tmp_path / "merged", tmp_path / "merged.gguf"), [IDS])[0]
    with_adapter, base = np.load(out), llama.logits(base_f16, [IDS])[0]
    p, q, r = (llama.log_softmax(rows) for rows in (merged, with_adapter, base))
    divergence, trained_by = ((np.exp(p) * (p - other)).sum(-1).mean() for other in (q, r))
    assert divergence < 1e-4
    assert trained_by > 100 * divergence


@pytest.mark.parametrize(
    ("lora", "said"),
    [
        ({"use_dora": True}, r"cannot hold DoRA's magnitudes \(model.layers.\d+"),
        (
            {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
            "cannot hold trained weights that are no low-rank",
        ),
        ({"target_modules": ["embed_tokens"]}, r"cannot hold an adapted embedding \(model.embed_tokens\)"),
    ],
)
def test_what_an_adapter_file_cannot_hold_is_refused(lora: dict, said: str, tiny_model: Path, tmp_path: Path) -> None:
    adapter = trained(tiny_model, tmp_path / "adapter", **lora)
    with pytest.raises(UserError, match=said):
        adapter_gguf.write(tiny_model, adapter, tmp_path / "a.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


def test_a_missing_converter_and_one_that_fails_leave_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = trained(tiny_model, tmp_path / "adapter")
    monkeypatch.setattr(adapter_gguf, "CONVERTER", tmp_path / "no.py")
    with pytest.raises(MachineError, match=r"no\.py\): run \./setup\.sh"):
        adapter_gguf.write(tiny_model, adapter, tmp_path / "a.gguf")
    (tmp_path / "no.py").write_text("import no_such_module_at_all\n")
    with pytest.raises(RunError, match="adapter: the Python package no_such_module_at_all is missing"):
        adapter_gguf.write(tiny_model, adapter, tmp_path / "a.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "no.py"]


@pytest.fixture
def job(tiny_model: Path, tmp_path: Path) -> Job:
    """A run that was trained and not exported: its adapter, its settings, the facts for the export."""
    run = tmp_path / "run"
    (run / runs.CHECKPOINTS).mkdir(parents=True)
    trained(tiny_model, run / runs.ADAPTER)
    (tmp_path / "rows.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    config = f"[Model]\nBASE_MODEL_NAME = {tiny_model}\nNEW_MODEL_NAME = me/mine\n[Dataset]\nDATASET_FILE = {tmp_path}/rows.jsonl\n"
    (run / runs.CONFIG).write_text(config)
    (run / runs.STATUS).write_text(json.dumps({"v": 1, "state": "failed", "stages": {}}))
    jinja = (tiny_model / "chat_template.jinja").read_text()
    template = {
        "jinja": jinja,
        "source": "its own",
        "bos": "<|im_start|>",
        "eos": "<|im_end|>",
        "end_tokens": ["<|im_end|>"],
    }
    facts = {
        "v": 1, "base": {"name": "tiny", "path": str(tiny_model), "kind": "folder"}, "plain": False, "num_ctx": 256,
        "stops": ["<|im_end|>"], "end_ids": [2], "questions": [], "sequences": [], "template": {**template, "today": None},
    }  # fmt: skip
    (run / runs.CHECKPOINTS / runs.FACTS).write_text(json.dumps(facts))
    return Job.of_run(run)


def program(*arguments: str | Path) -> Ended:
    return forked(ROOT / "training" / "export.py", *arguments)


def test_the_program_writes_an_adapter_and_its_modelfile_without_merging_anything(job: Job) -> None:
    ended = program(job.run.path, "--adapter", "smollm2:135m", "--name", "me/mine:1")
    assert ended.code == 0, ended.stderr
    path = job.run.path / "Modelfile.me-mine-1"
    assert ended.stdout == f"{path}\n"
    commands = modelfile_syntax.read(path)
    assert commands[:2] == [("from", "smollm2:135m"), ("adapter", "./me-mine.adapter.gguf")]
    assert ("stop", "<|im_end|>") in commands
    assert "<|im_start|>assistant" in dict(commands)["template"]
    assert (job.run.path / "me-mine.adapter.gguf").is_file()
    assert not job.merged.exists()


def test_the_modelfile_of_an_adapter_has_a_name_of_its_own_by_default(job: Job) -> None:
    assert adapter_gguf.export(job, "smollm2:135m") == job.run.path / "Modelfile.adapter"


def test_a_wrong_name_of_the_base_and_a_stage_beside_it_are_refused(job: Job) -> None:
    with pytest.raises(UserError, match="--adapter a b: "):
        adapter_gguf.export(job, "a b")
    with pytest.raises(UserError, match="--adapter makes the adapter's file alone"):
        export.parse([str(job.run.path), "--adapter", "a", "--only", "merge"])
    with pytest.raises(UserError, match="--adapter : a name must follow"):
        export.parse([str(job.run.path), "--adapter"])
    assert not list(job.run.path.glob("*.gguf"))
