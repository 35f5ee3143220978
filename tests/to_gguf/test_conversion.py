"""The converter and the quantiser: llama.cpp's own, in processes of their own, on a random model of two layers."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.facts import some_facts
from tests.support.paths import ROOT
from tests.support.settings import a_settings
from training.errors import MachineError, RunError, UserError
from training.llama import gguf_file
from training.pipeline import export_stages
from training.runs import Run
from training.system import files
from training.to_gguf import (
    conversion,
    conversion_worker,
    importance,
    merging,
    reader_metadata,
    trial,
    trial_model,
)
from training.to_gguf.job import Job


@pytest.fixture(scope="module")
def model(tmp_path_factory, forks):
    folder = tmp_path_factory.mktemp("convert") / "model"
    trial_model.make(folder, None, None)
    return folder


@pytest.fixture(scope="module")
def f16(model):
    return conversion.to_gguf(model, model.parent / "trial.f16.gguf")


def copy(model, tmp_path, **changes):
    """The model folder with other values in its config.json."""
    folder = tmp_path / "changed"
    shutil.copytree(model, folder)
    config = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps(config))
    return folder


# ---- without torch -------------------------------------------------------------------------------------------------


def test_every_method_has_its_own_number_in_llama_cpp():
    import llama_cpp

    numbers = [conversion_worker.file_type(llama_cpp, method) for method in conversion.METHODS]
    assert len(set(numbers)) == len(numbers) > 20


@pytest.mark.parametrize(
    ("printed", "code", "meaning"),
    [
        (
            ["ERROR:hf-to-gguf:Model FooForCausalLM is not supported"],
            1,
            "cannot convert the architecture FooForCausalLM",
        ),
        (["NotImplementedError: BPE pre-tokenizer was not recognized - update"], 1, "does not know this tokenizer"),
        (["ValueError: Can not map tensor 'model.layers.0.x.absmax'"], 1, "model.layers.0.x.absmax has no place"),
        (["ModuleNotFoundError: No module named 'sentencepiece'"], 1, "sentencepiece is missing: run ./setup.sh"),
        (
            ["FileNotFoundError: [Errno 2] No such file or directory: '/m/a.json'"],
            1,
            "/m/a.json is not there (any more)",
        ),
        (["MemoryError"], 1, "not enough memory"),
        (["llama_model_quantize: failed to quantize: unsupported"], 1, "llama.cpp: unsupported"),
        ([], -signal.SIGKILL, "memory ran out"),
        ([], -signal.SIGILL, "built for another CPU"),
        (["Traceback (most recent call last):", "  File x", "KeyError: 'y'"], 1, "it printed last: KeyError: 'y'"),
        ([], -signal.SIGSEGV, "signal 11; it printed last: it printed nothing"),
    ],
)
def test_a_failure_is_told_in_one_line_that_says_what_it_means(printed, code, meaning):
    told = conversion.reason(printed, code)
    assert meaning in told
    assert "\n" not in told


BEYOND = [
    "Traceback (most recent call last):",
    '  File "/x/conversion/base.py", line 1470, in _set_vocab_gpt2',
    "    tokens, toktypes, tokpre = self.get_vocab_base()",
    '  File "/x/conversion/base.py", line 1380, in get_vocab_base',
    "    assert max(tokenizer.vocab.values()) < vocab_size",
    "AssertionError",
]


@pytest.mark.parametrize(
    ("printed", "meaning"),
    [
        (BEYOND, "a token of the tokenizer has a number beyond the model's vocabulary (vocab_size in config.json)"),
        ([*BEYOND[:4], "    assert tokens", "AssertionError"], "cannot write this tokenizer: assert tokens"),
        ([*BEYOND[:4], "    x[1]", "IndexError: list index out of range"], "this tokenizer: list index out of range"),
    ],
)
def test_a_tokenizer_that_the_converter_cannot_write_is_no_matter_of_another_trial(printed, meaning):
    told = conversion.reason(printed, 1)
    assert meaning in told
    assert any(words in told for words in trial.UNKNOWN)


def test_a_failure_of_another_part_of_the_converter_is_not_taken_for_the_tokenizers():
    told = conversion.reason(["  File x, line 3, in write_tensors", "    assert y", "AssertionError"], 1)
    assert not any(words in told for words in trial.UNKNOWN)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], object]:
    """Takes the text of a script, which then does the converter's work."""
    script = tmp_path / "worker.py"
    monkeypatch.setattr(conversion, "WORKER", script)
    return lambda text: script.write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize(
    "raised, at",
    [
        ("OSError(5, 'Input/output error', '/m/config.json')", r"/m/config.json"),
        ("OSError(5, 'Input/output error')", r"at work on .*/out"),
        ("RuntimeError('error reading the file: Input/output error')", r"at work on .*/out"),
    ],
)
def test_a_drive_that_fails_under_the_converter_is_told_as_one(raised, at, worker, tmp_path):
    worker(f"raise {raised}\n")
    with pytest.raises(RunError, match=rf"^convert: {at}: Input/output error; the drive, .* `dmesg` tells more$"):
        conversion.work("convert", tmp_path / "out", 1, [], None)


@pytest.mark.slow
def test_a_worker_that_ends_before_its_work_is_done_is_no_success_whatever_its_exit_code(worker, tmp_path):
    worker("print('reading the model')\n")
    with pytest.raises(
        RunError, match="^convert: it ended before its work was done; it printed last: reading the model$"
    ):
        conversion.work("convert", tmp_path / "out", 1, [], None)


@pytest.mark.slow
def test_a_worker_that_was_killed_is_no_success_where_the_ends_of_children_are_ignored(worker, tmp_path):
    worker("import os\nprint('at work', flush=True)\nos.kill(os.getpid(), 9)\n")
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with pytest.raises(RunError, match="^convert: it ended before its work was done; it printed last: at work$"):
            conversion.work("convert", tmp_path / "out", 1, [], None)
    finally:
        signal.signal(signal.SIGCHLD, before)


def test_a_file_that_is_gone_or_empty_after_it_was_written_is_told_by_its_name(tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(RunError, match="^convert: llama.cpp has written .*/a.gguf, and it is not there"):
        conversion.check_written("convert", path)
    path.touch()
    with pytest.raises(RunError, match="^convert: llama.cpp has written .*/a.gguf, and it is empty"):
        conversion.check_written("convert", path)


def test_an_unknown_method_or_type_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="q4_k_x is none of"):
        conversion.quantise(tmp_path / "a", tmp_path / "b", "q4_k_x")
    with pytest.raises(ValueError, match="q4_k_m"):
        conversion.to_gguf(tmp_path, tmp_path / "b", "q4_k_m")


def test_a_missing_converter_says_to_set_up(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "CONVERTER", tmp_path / "convert_hf_to_gguf.py")
    with pytest.raises(MachineError, match=r"\./setup\.sh"):
        conversion.to_gguf(tmp_path, tmp_path / "out.gguf")


@pytest.mark.slow
def test_the_worker_ends_when_its_parent_does():
    code = "from training.system import parent_watch as w; import time; w.end_with_parent(); print('up', flush=True); time.sleep(60)"
    worker = [sys.executable, "-c", code]
    process = subprocess.Popen(
        worker, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert process.stdout.readline() == b"up\n"
    process.stdin.close()
    assert process.wait(timeout=10) == 1


# ---- on the tiny model ---------------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_a_model_is_converted_and_quantised_and_progress_is_told(model, tmp_path):
    told = []
    f16 = conversion.to_gguf(model, tmp_path / "a.gguf", progress=told.append)
    assert told == sorted(told) and told[-1] == 1.0
    expected = conversion.converted_size(model)
    assert expected <= f16.stat().st_size < 1.5 * expected

    told.clear()
    made = conversion.quantise(f16, tmp_path / "b.gguf", "q4_k_m", told.append)
    assert told == sorted(told) and told[-1] == 1.0
    assert made.size == (tmp_path / "b.gguf").stat().st_size >= conversion.least_size(f16, "q4_k_m")
    assert made.tensors == sum(made.types.values()) == len(gguf_file.read(tmp_path / "b.gguf").tensors)
    assert made.types["Q4_K"] > 0 and made.fell_back == 0 and made.fallbacks == {}
    assert made.path == tmp_path / "b.gguf"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.gguf", "b.gguf"]


@pytest.mark.tiny
@pytest.mark.parametrize("where", [merging.TEMPLATE, merging.TOKENIZER_CONFIG])
def test_the_gguf_of_a_model_of_plain_text_has_no_chat_template(tiny_model, tmp_path, where):
    job = Job(run=Run(tmp_path / "run"), settings=a_settings(), facts=some_facts(plain=True))
    job.f16.parent.mkdir(parents=True)
    folder = copy(tiny_model, tmp_path).rename(job.merged)
    (folder / merging.TEMPLATE).unlink(missing_ok=True)
    settings = json.loads((folder / merging.TOKENIZER_CONFIG).read_text()) | {"chat_template": "{{ tools }}"}
    if where == merging.TEMPLATE:
        (folder / where).write_text(settings.pop("chat_template"))
    (folder / merging.TOKENIZER_CONFIG).write_text(json.dumps(settings))
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    pairs = reader_metadata.pairs(reader_metadata.tokenizer(folder), None)
    chats = conversion.to_gguf(folder, tmp_path / "chats.gguf", pairs=pairs)
    export_stages.STAGES["convert"][1](job)
    fields = [gguf_file.read(path).fields for path in (chats, job.f16)]
    assert fields[0].keys() - fields[1].keys() == {"tokenizer.chat_template"}
    assert fields[1].keys() <= fields[0].keys()
    assert fields[0].get("general.name") == fields[1].get("general.name"), "the converter takes it from the folder's"
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


@pytest.mark.slow
def test_the_trial_which_a_plan_waits_for_loads_nothing_that_reads_rows():
    code = (
        "import sys; sys.path[:0] = sys.argv[1:]; from training.to_gguf import trial, trial_model\n"
        "print([name for name in ('training.data', 'training.evaluation') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.tiny
def test_rows_that_do_not_fit_the_type_are_counted(tmp_path, monkeypatch):
    monkeypatch.setitem(trial_model.SMALL, "hidden_size", 288)  # not a multiple of 256
    trial_model.make(tmp_path / "model", None, None)
    f16 = conversion.to_gguf(tmp_path / "model", tmp_path / "a.gguf")
    made = conversion.quantise(f16, tmp_path / "b.gguf", "q4_k_m")
    assert made.fallbacks["Q4_K -> Q5_0"] == made.types["Q5_0"] > 0
    assert made.fell_back == sum(made.fallbacks.values())


@pytest.mark.tiny
def test_every_method_quantises_with_an_importance_matrix_where_llama_cpp_asks_for_one(model, f16, tmp_path):
    importance.write(model, f16, range(300), tmp_path / "importance.npz")
    code = (
        "import sys; sys.path[:0] = sys.argv[1:2]\n"
        "from training.to_gguf import conversion; from training.to_gguf import conversion_worker; from training.settings import names\n"
        "matrix = lambda m: (sys.argv[3] + '/importance.npz',) if m in names.NEED_IMPORTANCE_MATRIX else ()\n"
        "print([m for m in conversion.METHODS if conversion_worker.quantise(sys.argv[2], f'{sys.argv[3]}/{m}.gguf', m, *matrix(m))])"
    )
    command = [sys.executable, "-c", code, str(ROOT), str(f16), str(tmp_path)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "[]\n"
    for method in conversion.METHODS:
        size = (tmp_path / f"{method}.gguf").stat().st_size
        assert size >= conversion.least_size(f16, method), method


@pytest.mark.tiny
def test_an_architecture_that_llama_cpp_does_not_know_is_named(model, tmp_path):
    folder = copy(model, tmp_path, architectures=["NoSuchForCausalLM"])
    with pytest.raises(RunError, match="cannot convert the architecture NoSuchForCausalLM"):
        conversion.to_gguf(folder, tmp_path / "out.gguf")
    assert [p.name for p in tmp_path.iterdir()] == ["changed"]


@pytest.mark.tiny
def test_a_folder_without_weights_is_named(model, tmp_path):
    folder = copy(model, tmp_path)
    (folder / "model.safetensors").unlink()
    with pytest.raises(RunError, match="changed"):
        conversion.to_gguf(folder, tmp_path / "out.gguf")


@pytest.mark.tiny
def test_a_gguf_that_is_quantised_already_is_refused_with_llama_cpps_reason(f16, tmp_path):
    first = conversion.quantise(f16, tmp_path / "a.gguf", "q4_0")
    with pytest.raises(RunError, match="requantizing from type"):
        conversion.quantise(first.path, tmp_path / "b.gguf", "q4_k_m")
    assert [p.name for p in tmp_path.iterdir()] == ["a.gguf"]


@pytest.mark.tiny
def test_an_interruption_ends_the_worker_and_leaves_nothing(f16, tmp_path):
    def interrupt(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        conversion.quantise(f16, tmp_path / "b.gguf", "q4_k_m", interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 600 KiB; it takes root to mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield disk
    subprocess.run(["umount", disk], check=True)


@pytest.mark.tiny
def test_a_full_disk_is_told_in_bytes_before_and_while_writing(model, f16, small_disk, monkeypatch):
    with pytest.raises(RunError, match=r"the disk is full: .* needs [\d,]+ bytes, 614,400 are free"):
        conversion.to_gguf(model, small_disk / "a.gguf")
    monkeypatch.setattr(conversion, "_check_room", lambda *_: None)  # as if another program took the room meanwhile
    for job in (
        lambda: conversion.to_gguf(model, small_disk / "a.gguf"),
        lambda: conversion.quantise(f16, small_disk / "b.gguf", "q8_0"),
    ):
        with pytest.raises(RunError, match="the disk is full"):
            job()
        assert list(small_disk.iterdir()) == []


@pytest.mark.tiny
def test_ready_tries_both_and_says_what_it_found(model):
    found = trial.ready(json.loads((model / "config.json").read_text()), model, "q5_k_m")
    assert found["architecture"] == "LlamaForCausalLM"
    assert found["types"]["Q5_K"] > 0
    assert 0 < found["quantised_bytes"] < found["f16_bytes"]


@pytest.mark.tiny
@pytest.mark.parametrize(
    ("kind", "change", "window"),
    [
        ("mistral", {"sliding_window": 4096}, 4096),
        ("mistral", {"sliding_window": None}, None),
        ("qwen2", {"sliding_window": 4096, "use_sliding_window": False}, None),
        ("llama", {}, None),
    ],
)
def test_ready_tells_of_a_sliding_window_that_llama_cpp_does_not_compute(kind, change, window, model):
    from transformers import AutoConfig

    size = json.loads((model / "config.json").read_text())["vocab_size"]
    known = {"hidden_size": 256, "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2}
    config = AutoConfig.for_model(kind, vocab_size=size, intermediate_size=512, **known, **change).to_dict()
    assert trial.ready(config, model).get("window") == window


@pytest.mark.tiny
def test_ready_leaves_the_random_numbers_of_the_run_alone(monkeypatch, tmp_path):
    import torch

    torch.manual_seed(7)
    wanted = torch.rand(3)
    torch.manual_seed(7)
    trial_model.make(tmp_path / "model", None, None)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.tiny
def test_ready_says_what_to_do_when_llama_cpp_is_broken(model, tmp_path, monkeypatch):
    broken = tmp_path / "convert_hf_to_gguf.py"
    files.write_text(broken, "import no_such_module_at_all\n")
    monkeypatch.setattr(conversion, "CONVERTER", broken)
    with pytest.raises(MachineError, match=r"no_such_module_at_all is missing: run \./setup\.sh"):
        trial.ready(json.loads((model / "config.json").read_text()), model)


def test_the_trial_model_keeps_what_the_architecture_is_and_shrinks_what_it_costs():
    config = {
        "model_type": "qwen3_moe",
        "hidden_size": 4096,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 3,
        "vocab_size": 151936,
        "num_experts": 128,
        "layer_types": ["full_attention"] * 48,
        "quantization_config": {"bits": 4},
    }
    small = trial_model.shrunk(config)
    assert (small["model_type"], small["vocab_size"]) == ("qwen3_moe", 151936)
    assert (small["hidden_size"], small["num_hidden_layers"], len(small["layer_types"])) == (256, 2, 2)
    assert small["num_attention_heads"] % small["num_key_value_heads"] == 0
    assert small["num_experts"] == 4
    assert "quantization_config" not in small and "intermediate_size" not in small
    assert config["hidden_size"] == 4096


def test_long_rope_factors_are_cut_to_the_small_head():
    scaling = {"rope_type": "longrope", "long_factor": [1.5] * 48, "short_factor": [1.0] * 48}
    small = trial_model.shrunk({"hidden_size": 3072, "rope_scaling": scaling, "partial_rotary_factor": 0.75})
    assert small["rope_scaling"] == {"rope_type": "longrope", "long_factor": [1.5] * 24, "short_factor": [1.0] * 24}


@pytest.fixture(scope="module")
def opt():
    """The config.json of an architecture that transformers knows and llama.cpp does not."""
    from transformers import OPTConfig

    return OPTConfig(vocab_size=512, ffn_dim=64, word_embed_proj_dim=256).to_dict()


@pytest.mark.tiny
def test_ready_refuses_an_architecture_that_llama_cpp_does_not_know(model, opt):
    with pytest.raises(UserError, match="cannot become a GGUF file: llama.cpp cannot convert the architecture OPTForC"):
        trial.ready(opt, model)


@pytest.mark.tiny
def test_where_no_small_model_of_an_architecture_can_be_made_a_llama_stands_in_and_a_note_says_why(
    model, opt, tmp_path
):
    found = trial.ready(opt | {"word_embed_proj_dim": "wide"}, model, keep=tmp_path / "vocabulary.gguf")
    assert found["architecture"] == "LlamaForCausalLM"
    assert "word_embed_proj_dim" in found["note"]
    kept = gguf_file.read(tmp_path / "vocabulary.gguf")
    assert kept.fields["tokenizer.ggml.tokens"] and not kept.tensors, "the model's own tokenizer is there all the same"


@pytest.mark.tiny
def test_the_trial_of_a_run_is_of_its_own_architecture_and_its_refusal_is_the_users_to_mend(model, opt):
    with trial.trial(json.loads((model / "config.json").read_text()), model) as figures:
        found = figures()
        assert found["architecture"] == "LlamaForCausalLM"
        assert gguf_file.read(found["vocabulary"]).fields["tokenizer.ggml.tokens"]
    assert not found["vocabulary"].exists(), "it is there until the block is left"
    with (
        trial.trial(opt, model) as figures,
        pytest.raises(UserError, match="cannot convert the architecture OPTForC"),
    ):
        figures()
