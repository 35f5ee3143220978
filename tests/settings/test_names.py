"""Names that others give: proved against llama.cpp itself; Ollama's rules for names case by case."""

import json
import subprocess
import sys

import pytest

from training.settings import names

QUANTISE_ALL = """
import contextlib, ctypes, json, os, sys
import gguf, llama_cpp, numpy as np
source, target, methods = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
writer = gguf.GGUFWriter(source, "llama")
for add, value in ((writer.add_context_length, 64), (writer.add_embedding_length, 256), (writer.add_block_count, 2),
                   (writer.add_feed_forward_length, 512), (writer.add_head_count, 4), (writer.add_head_count_kv, 4),
                   (writer.add_layer_norm_rms_eps, 1e-5), (writer.add_vocab_size, 256), (writer.add_file_type, 1)):
    add(value)
random = np.random.default_rng(0)
shapes = {"token_embd.weight": (256, 256), "output.weight": (256, 256)}
for layer in range(2):
    for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
        shapes[f"blk.{layer}.{name}.weight"] = (256, 256)
    shapes |= {f"blk.{layer}.ffn_{n}.weight": s for n, s in (("gate", (512, 256)), ("up", (512, 256)), ("down", (256, 512)))}
for name, shape in shapes.items():
    writer.add_tensor(name, random.normal(size=shape).astype(np.float16))
for name in ("output_norm.weight", *(f"blk.{i}.{n}_norm.weight" for i in range(2) for n in ("attn", "ffn"))):
    writer.add_tensor(name, np.ones(256, np.float32))
writer.write_header_to_file(); writer.write_kv_data_to_file(); writer.write_tensors_to_file(); writer.close()
quiet = llama_cpp.llama_log_callback(lambda level, text, data: None)
llama_cpp.llama_log_set(quiet, None)
done = {}
for method in methods:
    params = llama_cpp.llama_model_quantize_default_params()
    params.nthread = 1
    kind = "ALL_F32" if method == "f32" else "MOSTLY_" + method.upper()
    params.ftype = getattr(llama_cpp, "LLAMA_FTYPE_" + kind)
    done[method] = llama_cpp.llama_model_quantize(source.encode(), target.encode(), ctypes.byref(params))
print(json.dumps(done))
"""


@pytest.mark.tiny
def test_llama_cpp_makes_what_is_listed_and_refuses_what_needs_an_importance_matrix(tmp_path):
    pytest.importorskip("llama_cpp")
    methods = [*names.QUANTISATIONS, *names.NEED_IMPORTANCE_MATRIX]
    command = [sys.executable, "-c", QUANTISE_ALL, tmp_path / "in.gguf", tmp_path / "out.gguf", json.dumps(methods)]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    codes = json.loads(result.stdout)
    assert [method for method, code in codes.items() if code == 0] == list(names.QUANTISATIONS)


@pytest.mark.tiny
def test_every_type_of_llama_cpp_is_listed():
    llama_cpp = pytest.importorskip("llama_cpp")
    known = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_") for name in dir(llama_cpp) if "LLAMA_FTYPE" in name
    }
    listed = {name.upper() for name in (*names.QUANTISATIONS, *names.NEED_IMPORTANCE_MATRIX)}
    # GUESSED is a flag; its quantiser has no type for NVFP4 files (llama_ftype_get_default_type); gguf cannot read Q2_0 back
    assert known - {"GUESSED", "NVFP4", "Q2_0", "ALL_F32"} | {"F32"} == listed


@pytest.mark.parametrize(
    ("given", "found"), [("Q4_K_M", "q4_k_m"), ("q5_K", "q5_k_m"), ("BF16", "bf16"), ("IQ2_XS", "iq2_xs")]
)
def test_quantisations_are_known_in_any_case_and_by_alias(given, found):
    assert names.quantisation(given) == found


@pytest.mark.parametrize(
    "name",
    [
        "my-assistant",
        "qwen3:0.6b-personal-20260214",
        "me/my_model:v1.0",
        "registry.local:5000/me/model",
        "_x",
        "a" * 80,
    ],
)
def test_names_that_ollama_takes(name):
    names.check_model_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("", "the model is empty; Ollama takes [[host/]namespace/]model[:tag]"),
        ("a/b/c/d", "has too many slashes; Ollama takes [[host/]namespace/]model[:tag]"),
        ("model:", "the tag is empty; Ollama takes [[host/]namespace/]model[:tag]"),
        ("/model", "the namespace is empty; Ollama takes [[host/]namespace/]model[:tag]"),
        ("a" * 81, "the model has 81 characters; Ollama takes at most 80"),
        (
            "my model",
            "Ollama takes a model of letters, digits and _ - . only, beginning with a letter, a digit or _",
        ),
        (
            "my.team/model",
            "Ollama takes a namespace of letters, digits and _ - only, beginning with a letter, a digit or _",
        ),
        (
            "../model",
            "Ollama takes a namespace of letters, digits and _ - only, beginning with a letter, a digit or _",
        ),
        (
            "助手",
            "Ollama takes a model of letters, digits and _ - . only, beginning with a letter, a digit or _",
        ),
        (
            "m:a:b",
            "Ollama takes a tag of letters, digits and _ - . only, beginning with a letter, a digit or _",
        ),
    ],
)
def test_names_that_ollama_refuses(name, message):
    with pytest.raises(ValueError) as error:
        names.check_model_name(name)
    assert str(error.value) == message


def test_the_nearest_name_is_offered():
    assert names.did_you_mean("LORA_ALHPA", ["R", "LORA_ALPHA"]) == "; did you mean LORA_ALPHA?"
    assert names.did_you_mean("zzz", ["R"], "R is one") == "; R is one"
    assert names.did_you_mean("zzz", ["R"]) == ""
