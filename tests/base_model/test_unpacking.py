"""A GGUF file becomes a Hugging Face folder that is the same model (training/gguf_*.py)."""

from __future__ import annotations

import json
import math
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.gguf import byte_vocabulary, model_pairs, model_tensors, write_gguf
from tests.support.paths import ROOT
from training import base_model, llama
from training.base_model import gguf_config, gguf_tokenizer, sources, unpacking, unpacking_process
from training.errors import MachineError, UserError
from training.llama import gguf_file, hard_texts, process
from training.settings.table import Model
from training.system import control_groups

# setup.sh puts llama.cpp's converter there, and the vocabularies that llama.cpp tests itself with.
VOCABULARIES = Path(sys.prefix) / "llama.cpp" / "models"
# One name for each different way of cutting.
ONE_OF_EACH = sorted({way: name for name, way in gguf_tokenizer.PRE_TOKENIZERS.items()}.values())


def piece_vocabulary(space_prefix: bool = True) -> dict[str, Any]:
    """A SentencePiece vocabulary: pieces merged by score, the rest in bytes."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz.,!123"]
    words = ["▁t", "he", "▁the", "in", "▁a", "an", "ing", "ll", "▁▁", "12", "er", "▁i", "▁in"]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{b:02X}>" for b in range(256)), *words, *letters, "<|user|>", "<|end|>"]
    scores = (
        [0.0] * 259 + [-float(i) for i in range(len(words))] + [-1000.0 - i for i in range(len(letters))] + [0.0, 0.0]
    )
    types = [2, 3, 3] + [6] * 256 + [1] * (len(words) + len(letters)) + [4, 3]
    return {
        "general.architecture": "llama", "tokenizer.ggml.model": "llama", "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores, "tokenizer.ggml.token_type": types, "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2, "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_space_prefix": space_prefix, "tokenizer.ggml.add_bos_token": True,
    }  # fmt: skip


# ---- the file --------------------------------------------------------------------------------------------------------


def test_our_reader_and_the_packages_agree(tmp_path: Path) -> None:
    from gguf import GGUFReader

    path = write_gguf(tmp_path / "m.gguf", byte_vocabulary("gpt-2"), {"a": np_arange(6).reshape(2, 3)})
    ours, theirs = gguf_file.read(path), GGUFReader(path)
    assert ours.fields == {k: f.contents() for k, f in theirs.fields.items() if not k.startswith("GGUF.")}
    assert ours.tensors["a"].shape == (2, 3)
    assert ours.values(ours.tensors["a"]).tolist() == [[0, 1, 2], [3, 4, 5]]
    assert ours.values(ours.tensors["a"], 1, 1).tolist() == [[3, 4, 5]]


def np_arange(count: int) -> Any:
    import numpy as np

    return np.arange(count, dtype=np.float32)


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda raw: raw[: len(raw) // 2], "not a whole GGUF file"),
        (lambda raw: raw[:-9], "a ends at byte"),
        (lambda raw: b"PK" + raw[2:], "it begins with b'PKUF'"),
        (lambda raw: raw[:4] + struct.pack("<I", 9) + raw[8:], "version 9; 2 and 3 can be read"),
        (lambda raw: raw[:16] + struct.pack("<Q", 1 << 60) + raw[24:], "a length of 1152921504606846976"),
        (lambda raw: b"", "not a whole GGUF file"),
    ],
)
def test_a_damaged_file_is_refused_by_name(tmp_path: Path, damage: Any, said: str) -> None:
    path = write_gguf(tmp_path / "m.gguf", byte_vocabulary("gpt-2"), {"a": np_arange(64)})
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError) as caught:
        gguf_file.read(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


# ---- the tokenizer ---------------------------------------------------------------------------------------------------


def proved(path: Path) -> int:
    """How many texts the rebuilt tokenizer of a file cuts as llama.cpp does."""
    with llama.opened(path, vocab_only=True) as opened:
        vocabulary = gguf_tokenizer.read(gguf_file.read(path), opened)
        return gguf_tokenizer.prove(gguf_tokenizer.build(vocabulary), opened, vocabulary)


@pytest.mark.tiny
@pytest.mark.parametrize("pre", ONE_OF_EACH)
def test_every_pre_tokenizer_that_is_known_equals_llama_cpps(pre: str, tmp_path: Path) -> None:
    assert proved(write_gguf(tmp_path / "v.gguf", byte_vocabulary(pre))) > len(hard_texts.HARD_TEXTS)


@pytest.mark.embedded
@pytest.mark.parametrize("pre", ONE_OF_EACH)
def test_every_pre_tokenizer_equals_llama_cpps_with_a_real_vocabulary(pre: str, tmp_path: Path) -> None:
    # 50k tokens show cuts that a handful of merges cannot.
    real = gguf_file.read(VOCABULARIES / "ggml-vocab-gpt-2.gguf")
    pairs = {key: value for key, value in real.fields.items() if key.startswith("tokenizer.")}
    path = write_gguf(tmp_path / "v.gguf", pairs | {"general.architecture": "llama", "tokenizer.ggml.pre": pre})
    assert proved(path)


@pytest.mark.embedded
@pytest.mark.parametrize(
    "name",
    [
        "llama-bpe",
        "llama-spm",
        "qwen2",
        "phi-3",
        "gpt-2",
        "deepseek-coder",
        "falcon",
        "command-r",
        "baichuan",
        "aquila",
    ],
)
def test_the_tokenizers_of_real_models_equal_llama_cpps(name: str) -> None:
    assert proved(VOCABULARIES / f"ggml-vocab-{name}.gguf") > len(hard_texts.HARD_TEXTS)


@pytest.mark.embedded
@pytest.mark.parametrize("name", ["bert-bge", "nomic-bert-moe", "gemma-4", "deepseek-llm"])
def test_the_tokenizers_that_cannot_be_rebuilt_are_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="its tokenizer is of the kind|its pre-tokenizer .* is not known"):
        unpacking.unpack(VOCABULARIES / f"ggml-vocab-{name}.gguf", tmp_path)


@pytest.mark.tiny
@pytest.mark.parametrize("space_prefix", [True, False])
def test_sentencepiece_equals_llama_cpps(space_prefix: bool, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "v.gguf", piece_vocabulary(space_prefix))
    vocabulary = gguf_tokenizer.read(gguf_file.read(path))
    tokenizer = gguf_tokenizer.build(vocabulary)
    gguf_tokenizer.prove(tokenizer, path, vocabulary)
    text = "the thing, all in one: 123 ½"
    assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text


@pytest.mark.tiny
def test_sentencepiece_itself_reads_the_rebuilt_model(tmp_path: Path) -> None:
    from sentencepiece import SentencePieceProcessor

    path = write_gguf(tmp_path / "v.gguf", piece_vocabulary())
    vocabulary = gguf_tokenizer.read(gguf_file.read(path))
    gguf_tokenizer.save(gguf_tokenizer.build(vocabulary), vocabulary, tmp_path, 256)
    texts = ["the thing, all in one: 123 ½", "  the   ringing"]
    expected = process.tokenise(path, texts)
    processor = SentencePieceProcessor(model_file=str(tmp_path / "tokenizer.model"))
    assert [processor.encode(text) for text in texts] == expected


@pytest.mark.tiny
def test_a_tokenizer_that_differs_is_refused_with_the_text_that_shows_it(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "v.gguf", byte_vocabulary("gpt-2"))
    vocabulary = gguf_tokenizer.read(gguf_file.read(path))
    other = write_gguf(tmp_path / "other.gguf", byte_vocabulary("smollm"))
    with pytest.raises(UserError, match=r'pre "gpt-2"\) cannot be rebuilt faithfully: .*12345.* in llama\.cpp'):
        gguf_tokenizer.prove(gguf_tokenizer.build(vocabulary), other, vocabulary)


@pytest.mark.tiny
def test_unknown_kinds_of_tokenizer_are_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "v.gguf", byte_vocabulary("bloom"))
    with pytest.raises(UserError, match=r'm.*pre-tokenizer "bloom" is not known; known: .*smollm'):
        unpacking.unpack(path, tmp_path)


# ---- the whole folder ------------------------------------------------------------------------------------------------


@pytest.mark.tiny
@pytest.mark.parametrize("tied", [True, False])
def test_a_small_model_of_each_tokenizer_kind_is_unpacked_and_loads(tied: bool, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    vocabulary = byte_vocabulary("qwen2") if tied else piece_vocabulary()
    gguf = write_gguf(tmp_path / "m.gguf", model_pairs(vocabulary), model_tensors(vocabulary, tied))
    folder = tmp_path / "folder"
    folder.mkdir()
    said: list[str] = []
    unpacking.unpack(gguf, folder, said.append)
    assert "predicts what llama.cpp predicts" in said[-1]
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    expected |= {"chat_template.jinja"} if tied else {"tokenizer.model"}
    assert {file.name for file in folder.iterdir()} == expected
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = list(hard_texts.HARD_TEXTS)
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in texts] == process.tokenise(gguf, texts)
    assert tokenizer.eos_token == ("<|im_end|>" if tied else "</s>")
    assert (tokenizer("a").input_ids[0] == tokenizer.bos_token_id) is not tied  # add_bos_token of the second
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.tie_word_embeddings is tied
    assert model.dtype.itemsize == 2
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id


@pytest.mark.tiny
def test_llama_cpp_is_started_once_for_the_tokenizer_and_once_for_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = byte_vocabulary("gpt-2")
    gguf, begun = write_gguf(tmp_path / "m.gguf", model_pairs(vocabulary), model_tensors(vocabulary)), []

    class Counted(process.Process):
        def __init__(self, path: Path, vocab_only: bool, *adapter: Path) -> None:
            begun.append(vocab_only)
            super().__init__(path, vocab_only, *adapter)

    monkeypatch.setattr(process, "Process", Counted)
    gguf_file_to(gguf, tmp_path)
    assert begun == [True, False]


@pytest.mark.tiny
def test_large_models_are_written_in_shards_with_an_index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unpacking, "SHARD", 60_000)
    vocabulary = byte_vocabulary("gpt-2")
    gguf = write_gguf(tmp_path / "m.gguf", model_pairs(vocabulary), model_tensors(vocabulary))
    folder = tmp_path / "folder"
    folder.mkdir()
    unpacking.unpack(gguf, folder)
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(shards) > 1
    assert shards[0] == f"model-00001-of-{len(shards):05}.safetensors"
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p, t: t.pop("blk.1.ffn_up.weight"), "lacks the weights of model.layers.1.mlp.up_proj.weight"),
        (lambda p, t: t.update({"blk.0.extra.weight": np_arange(64)}), "tensor blk.0.extra.weight has no place"),
        (lambda p, t: p.update({"llama.feed_forward_length": 48}), "has the shape (96, 64); its architecture wants"),
        (lambda p, t: p.update({"general.architecture": "rwkv6"}), 'cannot read the architecture "rwkv6"'),
        (lambda p, t: p.update({"split.count": 3}), "one part of several"),
        (lambda p, t: p.update({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}), "longrope"),
    ],
)
def test_a_model_that_cannot_be_read_whole_is_refused(change: Any, said: str, tmp_path: Path) -> None:
    vocabulary = byte_vocabulary("gpt-2")
    pairs, tensors = model_pairs(vocabulary), model_tensors(vocabulary)
    change(pairs, tensors)
    gguf = write_gguf(tmp_path / "m.gguf", pairs, tensors)
    with pytest.raises(UserError) as caught:
        gguf_file_to(gguf, tmp_path)
    assert str(gguf) in str(caught.value)
    assert said in str(caught.value)


def gguf_file_to(gguf: Path, tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    unpacking.unpack(gguf, folder)


@pytest.mark.tiny
def test_a_setting_that_is_read_wrongly_shows_in_the_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    vocabulary = byte_vocabulary("gpt-2")
    gguf = write_gguf(tmp_path / "m.gguf", model_pairs(vocabulary), model_tensors(vocabulary))
    right = gguf_config._positions
    monkeypatch.setattr(gguf_config, "_positions", lambda *a: right(*a) | {"rope_theta": 20.0})
    with pytest.raises(UserError, match="does not predict what llama.cpp predicts"):
        gguf_file_to(gguf, tmp_path)


@pytest.mark.tiny
def test_where_a_container_has_too_little_memory_the_comparison_is_left_out_and_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "m.gguf").write_bytes(bytes(1 << 20))
    (tmp_path / "model.safetensors").write_bytes(bytes(2 << 20))
    (tmp_path / "memory.max").write_text(str(8 << 20))
    (tmp_path / "memory.current").write_text(str(5 << 20))
    monkeypatch.setattr(control_groups, "MOUNTED", tmp_path)
    said: list[str] = []
    assert unpacking.agreement(tmp_path / "m.gguf", tmp_path, said.append) is None
    assert said == ["m.gguf: not compared with llama.cpp: 2 MB of weights, 2 MB of memory left"]


@pytest.mark.tiny
def test_llama_3_scaling_is_found_from_its_table_of_divisors(tmp_path: Path) -> None:
    import numpy as np

    vocabulary = byte_vocabulary("llama-bpe")
    table = []
    for i in range(8):  # as llama.cpp's converter computes it for factor 32, original length 8192, base 5000
        wave = 2 * math.pi / 5000.0 ** -(2 * i / 16)
        smooth = (8192 / wave - 1) / 3
        table.append(1 if wave < 8192 / 4 else 32 if wave > 8192 else 1 / ((1 - smooth) / 32 + smooth))
    tensors = model_tensors(vocabulary) | {"rope_freqs.weight": np.array(table, dtype=np.float32)}
    gguf = write_gguf(tmp_path / "m.gguf", model_pairs(vocabulary), tensors)
    gguf_file_to(gguf, tmp_path)
    found = json.loads((tmp_path / "folder" / "config.json").read_text())["rope_parameters"]
    assert (found["rope_type"], found["factor"], found["original_max_position_embeddings"]) == ("llama3", 32.0, 8192)


# ---- the embedded model ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unpacked() -> Path:
    return base_model.locate(Model(base_model_name=sources.EMBEDDED)).path


@pytest.mark.embedded
def test_the_embedded_tokenizer_equals_llama_cpps(unpacked: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(unpacked)
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "½ 😀 你好 def f(): return 12345"}], tokenize=False, add_generation_prompt=True
    )
    texts = [*hard_texts.HARD_TEXTS, chat, "a<|im_end|>\n<|im_start|> b<|endoftext|><repo_name>x"]
    expected = process.tokenise(sources.embedded_file(), texts)
    assert [tokenizer(text, add_special_tokens=False).input_ids for text in texts] == expected
    assert tokenizer("Hello").input_ids == tokenizer("Hello", add_special_tokens=False).input_ids  # no BOS


@pytest.mark.embedded
def test_the_embedded_model_knows_its_end_of_turn(unpacked: Path) -> None:
    from transformers import AutoConfig, AutoTokenizer, GenerationConfig

    tokenizer = AutoTokenizer.from_pretrained(unpacked)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert AutoConfig.from_pretrained(unpacked).eos_token_id == 2
    assert GenerationConfig.from_pretrained(unpacked).eos_token_id == 2
    assert "You are a helpful AI assistant named SmolLM" in tokenizer.chat_template


@pytest.mark.embedded
def test_the_embedded_models_log_probabilities_agree_with_llama_cpp_on_the_original(unpacked: Path) -> None:
    # Same values de-quantised; what differs is their rounding to bf16 and llama.cpp's 8-bit activations.
    import numpy as np
    import torch
    from transformers import AutoModelForCausalLM

    gguf = sources.embedded_file()
    texts = [unpacking.SAMPLE, "def add(a, b):\n    return a + b\n\nprint(add(1, 2))", "今天天氣很好，我們去公園。"]
    sequences = process.tokenise(gguf, texts)
    model = AutoModelForCausalLM.from_pretrained(unpacked, dtype=torch.float32)
    kl, agree, chosen = [], [], []
    for ids, raw in zip(sequences, llama.logits(gguf, sequences), strict=True):
        theirs = llama.log_softmax(raw)
        with torch.no_grad():
            ours = llama.log_softmax(model(torch.tensor([ids])).logits[0].numpy())
        kl += (np.exp(theirs) * (theirs - ours)).sum(-1).tolist()
        agree += (ours.argmax(-1) == theirs.argmax(-1)).tolist()
        chosen += [abs(ours[i, t] - theirs[i, t]) for i, t in enumerate(ids[1:])]
    print(
        f"mean KL {np.mean(kl):.4f}, max {np.max(kl):.4f}, top-1 {np.mean(agree):.3f}, log-prob {np.mean(chosen):.4f}"
    )
    assert np.mean(kl) < 0.02
    assert np.mean(agree) > 0.85
    assert np.mean(chosen) < 0.2  # nats, of the tokens that really follow


# ---- in a process of its own -----------------------------------------------------------------------------------------

FIRST_RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from training.base_model import sources
from training.settings.table import Model
from training.system import forkserver
sources.MODELS = Path(sys.argv[3])
forkserver.start()
found = sources.locate(Model(base_model_name=sys.argv[2], revision=None, trust_remote_code=False), print)
print(found.parameters, "transformers" in sys.modules, "torch" in sys.modules)
"""


@pytest.mark.tiny
def test_a_first_run_imports_no_transformers_before_its_engine_for_unsloth_must_be_first(tmp_path: Path) -> None:
    vocabulary = byte_vocabulary("qwen2")
    gguf = write_gguf(tmp_path / "own.gguf", model_pairs(vocabulary), model_tensors(vocabulary))
    command = [sys.executable, "-c", FIRST_RUN, ROOT, gguf, tmp_path / "models"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "own.gguf: predicts what llama.cpp predicts" in done.stdout
    assert done.stdout.splitlines()[-1].endswith(" False False")


@pytest.mark.tiny
def test_what_is_wrong_with_a_file_is_said_by_the_process_as_by_the_function(tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\0\0\0")
    said = []
    for unpack in (unpacking.unpack, unpacking_process.unpack):
        with pytest.raises(UserError) as caught:
            unpack(tmp_path / "cut.gguf", tmp_path, print)
        said.append(caught.value.problems)
    assert said[0] == said[1] and "cut.gguf" in said[0][0]


@pytest.mark.tiny
def test_a_process_without_a_file_to_read_raises_as_the_function_does(tmp_path: Path) -> None:
    said = []
    for unpack in (unpacking.unpack, unpacking_process.unpack):
        with pytest.raises((OSError, UserError)) as caught:
            unpack(tmp_path / "gone.gguf", tmp_path, print)
        said.append((caught.type, str(caught.value)))
    assert said[0] == said[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os; os.kill(os.getpid(), 9)", "its process has ended with -9 (too little memory, most likely)"),
        ("print('no such library'); raise SystemExit(7)", "its process has ended with 7 (no such library)"),
    ],
)
def test_an_unpacking_that_is_ended_from_outside_is_the_machines_failure(tmp_path, monkeypatch, code, said) -> None:
    (tmp_path / "worker.py").write_text(code)
    monkeypatch.setattr(unpacking_process, "__file__", str(tmp_path / "worker.py"))
    with pytest.raises(MachineError) as caught:
        unpacking_process.unpack(tmp_path / "m.gguf", tmp_path, print)
    assert str(caught.value) == f"{tmp_path / 'm.gguf'} cannot be unpacked: {said}"
