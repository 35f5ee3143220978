"""The whole road for each architecture, on random models of a few layers: adapter, merge, convert, quantise, agree.

The real configuration classes with what sets each architecture apart. All are converted in one process, because most
of a conversion's time is the import of the libraries.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.support.architectures import ARCHITECTURES, EXPERTS, SMALL, random_adapter, random_model, tokenizer_into
from tests.support.paths import ROOT
from tests.support.programs import finetune
from tests.support.tiny import write_tiny_config
from training.checks import gguf_files, require
from training.checks import logits as checks
from training.evaluation import reference
from training.llama import gguf_file
from training.to_gguf import conversion, merging

pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("forks")]
# What llama.cpp must find in the file: a tensor that only this architecture has, or that shows what was merged into.
MARKS = {
    "llama": "rope_freqs.weight", "mistral": "output.weight", "qwen2": "blk.0.attn_q.bias", "qwen3": "blk.0.attn_q_norm.weight",
    "gemma3_text": "blk.5.post_ffw_norm.weight", "phi3": "blk.0.attn_qkv.weight", "qwen3_moe": "blk.0.ffn_gate_exps.weight",
}  # fmt: skip
# Clean values are 3e-8 to 1.2e-7: lost rope_freqs cost 1.75e-5, a bias of zeros 2.7e-5, unpermuted q and k 1.4e-4. Of a
# mixture 9e-6, because llama.cpp's f16 activations tip a router now and then.
MOST_F16_KL, MOST_F16_KL_OF_EXPERTS = 1e-6, 5e-5
KINDS = ("llama-spm", "phi-3", "llama-bpe")  # real vocabularies, rebuilt from GGUF files

CONVERT_ALL = """
import sys, traceback
_, root, converter, *folders = sys.argv  # the converter is given a sys.argv of its own
sys.path.insert(0, root)
from training.to_gguf import conversion_worker
for folder in folders:
    try:
        conversion_worker.convert(converter, folder + "/merged", "--outfile", folder + "/f16.gguf", "--outtype", "f16")
    except BaseException:
        open(folder + "/failed", "w").write(traceback.format_exc())
"""


@pytest.fixture(scope="module")
def converted(tmp_path_factory: pytest.TempPathFactory, embedded: Path) -> dict[str, Path]:
    """Every architecture merged, every kind of tokenizer under a small model, all converted (or a file `failed`)."""
    root = tmp_path_factory.mktemp("architectures")
    folders = {}
    for name, (kind, config, lora) in ARCHITECTURES.items():
        folder = folders[name] = root / name
        # Gemma's tokenizers put no space in front, and llama.cpp's converter counts on it
        size = tokenizer_into(folder / "base", kind, embedded, space_prefix=name != "gemma3_text")
        random_model(folder / "base", name, **{**SMALL, **config, "vocab_size": size})
        random_adapter(folder / "base", folder / "adapter", **lora)
        merging.merge(folder / "base", folder / "adapter", folder / "merged")
    for kind in KINDS:
        folder = folders[f"tokenizer {kind}"] = root / f"tokenizer-{kind}"
        size = tokenizer_into(folder / "merged", kind, embedded)
        flat = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "head_dim": 8}
        architecture = "phi3" if kind == "phi-3" else "llama"
        random_model(
            folder / "merged", architecture, **{**SMALL, **flat, "vocab_size": size, "tie_word_embeddings": True}
        )
    command = [sys.executable, "-c", CONVERT_ALL, str(ROOT), str(conversion.CONVERTER), *map(str, folders.values())]
    subprocess.run(command, capture_output=True, check=True)
    return folders


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_an_architecture_goes_the_whole_road(name: str, converted: Any, record_property: Any) -> None:
    folder = converted[name]
    began = time.perf_counter()
    assert not (folder / "failed").is_file(), (folder / "failed").read_text()
    vocabulary = json.loads((folder / "merged" / "config.json").read_text())["vocab_size"]
    ids, start = [[(position * 7919 + 13) % vocabulary for position in range(40)]], [1]
    quantised = conversion.quantise(folder / "f16.gguf", folder / "q.gguf", "q4_k_m")
    with reference.opened(folder / "merged") as model:
        made = [
            gguf_files.merged_tensors(folder / "base", folder / "adapter", folder / "merged"),
            checks.merged_logits(folder / "base", folder / "adapter", folder / "merged", ids, start),
            gguf_files.gguf_tokenizer(folder / "f16.gguf", folder / "merged"),
            gguf_files.f16_agrees(folder / "f16.gguf", model, ids, start),
            gguf_files.quantised(folder / "f16.gguf", folder / "q.gguf", ids, start),
        ]
    require(made)
    assert [check.skipped for check in made] == [""] * 5
    tensors, logits, _, f16, cost = (check.figures for check in made)
    assert tensors["changed"] == tensors["targeted"] > 0
    assert logits["mean_kl_of_training"] > 100 * logits["mean_kl"], "the adapter must be seen beside the rounding"
    assert f16["mean_kl"] < (MOST_F16_KL_OF_EXPERTS if "moe" in name else MOST_F16_KL)
    assert MARKS[name] in gguf_file.read(folder / "f16.gguf").tensors
    assert quantised.types["Q4_K"] > 0
    assert quantised.fell_back == 0
    figures = {"merge KL": logits["mean_kl"], "f16 KL": f16["mean_kl"], "q4_k_m KL": cost["mean_kl"]}
    for what, figure in {**figures, "f16 top-1": f16["top1"], "seconds": time.perf_counter() - began}.items():
        record_property(what, figure)


@pytest.mark.parametrize("kind", KINDS)
def test_a_tokenizer_unpacked_from_a_gguf_file_converts_back_to_the_same_tokens(kind: str, converted: Any) -> None:
    folder = converted[f"tokenizer {kind}"]
    assert not (folder / "failed").is_file(), (folder / "failed").read_text()
    found = gguf_files.gguf_tokenizer(folder / "f16.gguf", folder / "merged")
    require([found])
    fields = gguf_file.read(folder / "f16.gguf").fields
    original = gguf_file.read(conversion.CONVERTER.parent / "models" / f"ggml-vocab-{kind}.gguf").fields
    assert fields["tokenizer.ggml.model"] == original["tokenizer.ggml.model"]
    assert fields["tokenizer.ggml.tokens"] == original["tokenizer.ggml.tokens"]
    if kind == "llama-bpe":
        assert fields["tokenizer.ggml.pre"] == kind


def test_a_mixture_of_experts_is_trained_and_exported_by_the_program(embedded: Path, tmp_path: Path) -> None:
    size = tokenizer_into(tmp_path / "base", "smollm", embedded)
    random_model(tmp_path / "base", "qwen3_moe", **{**SMALL, **EXPERTS, "vocab_size": size})
    config = write_tiny_config(tmp_path, tmp_path / "base")
    text = config.read_text().replace("MAX_STEPS = 6", "MAX_STEPS = 2").replace("EVAL_STEPS = 3", "EVAL_STEPS = 0")
    config.write_text(text)
    ended = finetune("--config", config)
    assert ended.code == 0, ended.stderr
    report = json.loads((ended.run / "report.json").read_text(encoding="utf-8"))
    assert {check["passed"] for check in report["checks"]} == {True}
    assert "tried on a small Qwen3MoeForCausalLM" in (ended.run / "finetune.log").read_text(encoding="utf-8")


def test_phi_3s_markers_take_the_white_space_after_them_in_the_file_too(converted: Any, tmp_path: Path) -> None:
    folder = converted["tokenizer phi-3"]
    chats = ["<|user|>\nWhat is 3 + 3?<|end|>\n<|assistant|>\n"]
    named = conversion.to_gguf(folder / "merged", tmp_path / "named.gguf")
    assert gguf_files.gguf_tokenizer(named, folder / "merged", chats).passed
    nameless = gguf_files.gguf_tokenizer(
        folder / "f16.gguf", folder / "merged", chats
    )  # as the converter alone makes it
    assert nameless.failure.startswith("llama.cpp cuts 1 of ") and "<|user|>" in nameless.failure
