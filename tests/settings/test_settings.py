"""The settings: the table, what is refused and in which words, where values come from, and the way back to a file."""

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support.paths import ROOT
from training import settings
from training.errors import UserError
from training.settings import (
    Override,
    column_names,
    command_line,
    contradictions,
    ini_file,
    names,
    rules,
    table,
)
from training.settings.table import EVERY, TABLE
from training.system import paths

ANY_FIXTURE = hypothesis_settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)


def load(folder, text="[Model]\n", overrides=(), **how):
    path = folder / "config.ini"
    path.write_text(text, encoding="utf-8")
    return settings.load(path, overrides, **{"check_files": False, **how})


def refused(folder, text="[Model]\n", overrides=(), **how):
    """The lines of the error, without the title."""
    with pytest.raises(UserError) as error:
        load(folder, text, overrides, **how)
    title, *lines = str(error.value).split("\n")
    file, count = folder / "config.ini", f"{len(lines)} problem{'s' if len(lines) > 1 else ''}"
    places = [str(file)] if not overrides else [str(file), "arguments", f"{file} and arguments"]
    assert title in [f"{place}: {count}" for place in places]
    return [line[2:] for line in lines]


# One wrong line each, in its section, and the whole message.
WRONG_VALUES = [
    ("LoRA", "R = 0", "[LoRA] R = 0: must be at least 1"),
    ("LoRA", "R = -8", "[LoRA] R = -8: must be at least 1"),
    ("LoRA", "R = 8.0", "[LoRA] R = 8.0: expected a whole number"),
    ("LoRA", "R = eight", "[LoRA] R = eight: expected a whole number"),
    ("LoRA", "R = １６", "[LoRA] R = １６: expected a whole number; its characters only look alike: type 16"),
    (
        "Training",
        "LEARNING_RATE = 2e−4",
        "[Training] LEARNING_RATE = 2e−4: expected a number such as 0.1 or 2e-4; its characters only look alike: type 2e-4",
    ),
    ("LoRA", "R =", "[LoRA] R is empty: expected a whole number"),
    ("LoRA", "R = 1,000", "[LoRA] R = 1,000: expected a whole number"),
    ("LoRA", "R = 99999999999", "[LoRA] R = 99999999999: must be at most 2147483647"),
    ("LoRA", "LORA_ALPHA = 0", "[LoRA] LORA_ALPHA = 0: must be at least 1"),
    ("LoRA", "LORA_DROPOUT = 1.5", "[LoRA] LORA_DROPOUT = 1.5: must be from 0 up to, not including, 1"),
    ("LoRA", "LORA_DROPOUT = 1", "[LoRA] LORA_DROPOUT = 1: must be from 0 up to, not including, 1"),
    ("LoRA", "LORA_DROPOUT = -0.1", "[LoRA] LORA_DROPOUT = -0.1: must be from 0 up to, not including, 1"),
    ("LoRA", "LORA_DROPOUT = nan", "[LoRA] LORA_DROPOUT = nan: expected a number such as 0.1 or 2e-4"),
    ("LoRA", "BIAS = lora", "[LoRA] BIAS = lora: must be one of none, all, lora_only"),
    ("LoRA", "BIAS = some", "[LoRA] BIAS = some: must be one of none, all, lora_only"),
    ("LoRA", "BIAS = lora-only", "[LoRA] BIAS = lora-only: must be one of none, all, lora_only; did you mean lora_only?"),
    ("LoRA", "TARGET_MODULES =", "[LoRA] TARGET_MODULES is empty: expected names with commas between them"),
    ("LoRA", "TARGET_MODULES = q_proj,,v_proj", "[LoRA] TARGET_MODULES = q_proj,,v_proj: expected names with commas between them"),
    ("LoRA", "TARGET_MODULES = q_proj, q_proj", "[LoRA] TARGET_MODULES = q_proj, q_proj: q_proj is named twice"),
    ("LoRA", "TARGET_MODULES = q proj", "[LoRA] TARGET_MODULES = q proj: q proj is not the name of a module, such as q_proj"),
    ("LoRA", "TARGET_MODULES = all-linear,q_proj", "[LoRA] TARGET_MODULES = all-linear,q_proj: all-linear stands alone: it means every linear layer"),
    ("LoRA", "USE_DORA = yes", "[LoRA] USE_DORA = yes: expected true or false"),
    ("LoRA", "LORA_ALHPA = 16", "[LoRA] LORA_ALHPA is not a setting; did you mean LORA_ALPHA?"),
    ("LoRA", "r = 16", "[LoRA] r is not a setting; write R"),
    ("LoRA", "MAX_STEPS = 16", "[LoRA] MAX_STEPS is not a setting; MAX_STEPS belongs in [Training]"),
    ("LoRA", "ZZZZ = 16", "[LoRA] ZZZZ is not a setting"),
    ("Model", "HF_TOKEN = hf_secret", "[Model] HF_TOKEN is not a setting; tokens are read from the environment (HF_TOKEN, WANDB_API_KEY), never from a file"),
    ("Model", "BASE_MODEL_NAME =", "[Model] BASE_MODEL_NAME is empty: must name a model: a Hub id, a folder, a .gguf file or an Ollama tag"),
    ("Model", "BASE_MODEL_NAME = None", "[Model] BASE_MODEL_NAME = None: must name a model: a Hub id, a folder, a .gguf file or an Ollama tag"),
    ("Model", "BASE_MODEL_NAME = embedded/SmolLM", "[Model] BASE_MODEL_NAME = embedded/SmolLM: the only embedded model is embedded/SmolLM2-135M-Instruct"),
    ("Model", "BASE_MODEL_NAME = https://huggingface.co/a/b", "[Model] BASE_MODEL_NAME = https://huggingface.co/a/b: is an address; write a/b"),
    ("Model", "BASE_MODEL_NAME = 'a/b'", "[Model] BASE_MODEL_NAME = 'a/b': is neither a Hub id (letters, digits, - _ . and one /) nor an existing folder or .gguf file"),
    ("Model", "BASE_MODEL_NAME = a/b/c", "[Model] BASE_MODEL_NAME = a/b/c: no such folder ({folder}/a/b/c); a Hub id has one / only, as in Qwen/Qwen3-0.6B"),
    ("Model", "NEW_MODEL_NAME = my model", "[Model] NEW_MODEL_NAME = my model: Ollama takes a model of letters, digits and _ - . only, beginning with a letter, a digit or _"),
    ("Model", "NEW_MODEL_NAME = ../../etc", "[Model] NEW_MODEL_NAME = ../../etc: Ollama takes a host of letters, digits and _ - . : only, beginning with a letter, a digit or _"),
    ("Model", f"NEW_MODEL_NAME = {'h' * 190}/n/m:latest", f"[Model] NEW_MODEL_NAME = {'h' * 57}...: has 201 characters; files are named after it, so 200 is the most"),
    ("Model", "MAX_SEQ_LENGTH = 0", "[Model] MAX_SEQ_LENGTH = 0: must be at least 16"),
    ("Model", "CHAT_TEMPLATE = alpca", "[Model] CHAT_TEMPLATE = alpca: is neither one of {templates} nor a Jinja file; did you mean alpaca?"),
    ("Model", "SYSTEM_PROMPT = @none.txt", "[Model] SYSTEM_PROMPT = @none.txt: {folder}/none.txt: no such file"),
    ("Model", "SYSTEM_PROMPT = @", "[Model] SYSTEM_PROMPT = @: names no file after @"),
    ("Model", "TRUST_REMOTE_CODE = 1", "[Model] TRUST_REMOTE_CODE = 1: expected true or false"),
    ("Dataset", "DATASET_FILE =", "[Dataset] DATASET_FILE is empty: must not be empty"),
    ("Dataset", "DATASET_FILE = ~nobody-here/x", "[Dataset] DATASET_FILE = ~nobody-here/x: there is no home folder for ~nobody-here"),
    ("Dataset", "FORMAT = alpacca", "[Dataset] FORMAT = alpacca: must be one of auto, messages, conversations, alpaca, prompt, input, text; did you mean alpaca?"),
    ("Dataset", "VALIDATION_SPLIT = 1", "[Dataset] VALIDATION_SPLIT = 1: must be from 0 up to, not including, 1"),
    ("Dataset", "VALIDATION_SPLIT = 10%", "[Dataset] VALIDATION_SPLIT = 10%: expected a number such as 0.1 or 2e-4"),
    ("Dataset", "PROMPT_TEMPLATE = {instruction}", "[Dataset] PROMPT_TEMPLATE = {instruction}: {response} is missing: it marks where the answer stands"),
    ("Dataset", "PROMPT_TEMPLATE = ### Q:\\n{q}\\n### A:\\n{response}", "[Dataset] PROMPT_TEMPLATE is empty: ### Q:\\n{q}\\n### A:\\n{respo... is read as a comment; put the whole text in double quotes"),
    ("Model", "SYSTEM_PROMPT = Write ## above", "[Model] SYSTEM_PROMPT = Write: ## above is read as a comment; put the whole text in double quotes"),
    ("Dataset", "ON_BAD_ROW = ignore", "[Dataset] ON_BAD_ROW = ignore: must be one of stop, skip"),
    ("Dataset", "MAX_ROWS = -1", "[Dataset] MAX_ROWS = -1: must be at least 0"),
    ("Training", "LEARNING_RATE = 0", "[Training] LEARNING_RATE = 0: must be above 0 and at most 1"),
    ("Training", "LEARNING_RATE = 1e-400", "[Training] LEARNING_RATE = 1e-400: must be above 0 and at most 1"),
    ("Training", "LEARNING_RATE = 2e", "[Training] LEARNING_RATE = 2e: expected a number such as 0.1 or 2e-4"),
    ("Training", "LEARNING_RATE = 0x1", "[Training] LEARNING_RATE = 0x1: expected a number such as 0.1 or 2e-4"),
    ("Training", "NUM_TRAIN_EPOCHS = 0", "[Training] NUM_TRAIN_EPOCHS = 0: must be above 0 and at most 10000"),
    ("Training", "MAX_GRAD_NORM = 1e999", "[Training] MAX_GRAD_NORM = 1e999: must be at most 1e+300"),
    ("Training", "SEED = 4294967296", "[Training] SEED = 4294967296: must be from 0 to 4294967295"),
    ("Training", "LR_SCHEDULER_TYPE = cosin", "[Training] LR_SCHEDULER_TYPE = cosin: must be one of linear, cosine, cosine_with_restarts, polynomial, constant, constant_with_warmup, inverse_sqrt; did you mean cosine?"),
    ("Training", "PACKING = maybe", "[Training] PACKING = maybe: expected auto, true or false"),
    ("Training", "REPORT_TO = wandb,tensorboard", "[Training] REPORT_TO = wandb,tensorboard: must be one of none, tensorboard, wandb, trackio"),
    ("Training", "OUTPUT_DIR =", "[Training] OUTPUT_DIR is empty: must not be empty"),
    ("Quantization", "LOAD_IN_4BIT = ture", "[Quantization] LOAD_IN_4BIT = ture: expected true or false"),
    ("Quantization", "QUANTIZATION_METHOD = q4_km", "[Quantization] QUANTIZATION_METHOD = q4_km: q4_km is not a quantisation of llama.cpp; did you mean q4_k_m?"),
    ("Quantization", "QUANTIZATION_METHOD = gptq", "[Quantization] QUANTIZATION_METHOD = gptq: gptq is not a quantisation of llama.cpp; q4_k_m, q8_0 and f16 are"),
    ("Quantization", "QUANTIZATION_METHOD = IQ2_XSS", "[Quantization] QUANTIZATION_METHOD = IQ2_XSS: IQ2_XSS is not a quantisation of llama.cpp; did you mean iq2_xs?"),
    ("Quantization", "QUANTIZATION_METHOD = q4_k, Q4_K_M", "[Quantization] QUANTIZATION_METHOD = q4_k, Q4_K_M: q4_k_m is named twice"),
    ("Hardware", "NUM_THREADS = 0", "[Hardware] NUM_THREADS = 0: must be from 1 to 4096, or auto"),
    ("Hardware", "NUM_THREADS = all", "[Hardware] NUM_THREADS = all: expected a whole number, or auto"),
    ("Hardware", "DEVICE = gpu", "[Hardware] DEVICE = gpu: write cuda"),
    ("Hardware", "DEVICE = cuda:x", "[Hardware] DEVICE = cuda:x: must be one of auto, cpu, cuda, xpu; did you mean cuda?"),
    ("Hardware", "MAIN_PROCESS_ADDRESS = 10.0.0.5:99999", "[Hardware] MAIN_PROCESS_ADDRESS = 10.0.0.5:99999: expected host or host:port, such as 10.0.0.5:29500"),
    ("Hardware", "MACHINE_RANK = 1", "[Hardware] MACHINE_RANK = 1: must be less than the number of machines: [Hardware] NUM_MACHINES = 1 (the default)"),
]  # fmt: skip


@pytest.mark.parametrize(("section", "line", "message"), WRONG_VALUES, ids=[line for _, line, _ in WRONG_VALUES])
def test_a_wrong_value_is_named_with_its_line(tmp_path, section, line, message):
    templates = ", ".join(["auto", *sorted(p.stem for p in paths.CHAT_TEMPLATES.glob("*.jinja"))])
    expected = message.replace("{folder}", str(tmp_path)).replace("{templates}", templates)
    assert refused(tmp_path, f"[{section}]\n\n{line}\n") == [f"config.ini:3: {expected}"]


# Settings that do not go together: the file, and the whole message.
CONTRADICTIONS = [
    ("[Training]\nWARMUP_STEPS = 100\nMAX_STEPS = 50", "config.ini:2: [Training] WARMUP_STEPS = 100: is longer than the run: [Training] MAX_STEPS = 50 (config.ini:3)"),
    ("[Training]\nEVAL_STEPS = 61", "config.ini:2: [Training] EVAL_STEPS = 61: is longer than the run: [Training] MAX_STEPS = 60 (the default)"),
    ("[Training]\nSAVE_STEPS = 61", "config.ini:2: [Training] SAVE_STEPS = 61: is longer than the run: [Training] MAX_STEPS = 60 (the default)"),
    ("[Training]\nLOGGING_STEPS = 61", "config.ini:2: [Training] LOGGING_STEPS = 61: is longer than the run: [Training] MAX_STEPS = 60 (the default)"),
    ("[Training]\nSAMPLE_STEPS = 61", "config.ini:2: [Training] SAMPLE_STEPS = 61: is longer than the run: [Training] MAX_STEPS = 60 (the default)"),
    ("[Training]\nEVAL_STEPS = 10\n[Dataset]\nVALIDATION_SPLIT = 0", "config.ini:2: [Training] EVAL_STEPS = 10: there are no rows to validate on: [Dataset] VALIDATION_SPLIT = 0 (config.ini:4) and [Dataset] VALIDATION_FILE is empty (the default)"),
    ("[Training]\nEARLY_STOPPING_PATIENCE = 3\n[Dataset]\nVALIDATION_SPLIT = 0", "config.ini:2: [Training] EARLY_STOPPING_PATIENCE = 3: there are no rows to validate on: [Dataset] VALIDATION_SPLIT = 0 (config.ini:4) and [Dataset] VALIDATION_FILE is empty (the default)"),
    ("[Training]\nFAIL_IF_WORSE = true\n[Dataset]\nVALIDATION_SPLIT = 0", "config.ini:2: [Training] FAIL_IF_WORSE = true: there are no rows to validate on: [Dataset] VALIDATION_SPLIT = 0 (config.ini:4) and [Dataset] VALIDATION_FILE is empty (the default)"),
    ("[Training]\nEARLY_STOPPING_PATIENCE = 3\nEVAL_STEPS = 0", "config.ini:2: [Training] EARLY_STOPPING_PATIENCE = 3: nothing is validated during training: [Training] EVAL_STEPS = 0 (config.ini:3)"),
    ("[Dataset]\nDATASET_FILE = /a.jsonl\nTEST_FILE = /a.jsonl", "config.ini:3: [Dataset] TEST_FILE = /a.jsonl: the model would be tested on rows that it has seen: [Dataset] DATASET_FILE = /a.jsonl (config.ini:2)"),
    ("[Dataset]\nDATASET_FILE = /a.jsonl\nVALIDATION_FILE = /a.jsonl", "config.ini:3: [Dataset] VALIDATION_FILE = /a.jsonl: the model would be validated on its training rows: [Dataset] DATASET_FILE = /a.jsonl (config.ini:2)"),
    ("[Dataset]\nDATASET_FILE = /b.jsonl, /a.jsonl\nREPLAY_SHARE = 0.1\nREPLAY_FILE = /a.jsonl", "config.ini:4: [Dataset] REPLAY_FILE = /a.jsonl: its rows are trained on already; mine.jsonl, other.jsonl*2 takes those of a file twice: [Dataset] DATASET_FILE = /b.jsonl, /a.jsonl (config.ini:2)"),
    ("[Dataset]\nVALIDATION_FILE = /a.jsonl\nREPLAY_SHARE = 0.1\nREPLAY_FILE = /a.jsonl", "config.ini:4: [Dataset] REPLAY_FILE = /a.jsonl: the model would be measured on rows that it is trained on: [Dataset] VALIDATION_FILE = /a.jsonl (config.ini:2)"),
    ("[Dataset]\nREPLAY_SHARE = 0.1\n[Hardware]\nNUM_MACHINES = 2\nMAIN_PROCESS_ADDRESS = host:1", "[Dataset] REPLAY_FILE = general: the base model answers on one machine, and the others would not have its answers; train with it on one, and name the replay.jsonl of that run on all of them: [Hardware] NUM_MACHINES = 2 (config.ini:4)"),
    ("[Dataset]\nVALIDATION_SPLIT = 0.5\nTEST_SPLIT = 0.5", "config.ini:3: [Dataset] TEST_SPLIT = 0.5: no row is left for training: [Dataset] VALIDATION_SPLIT = 0.5 (config.ini:2)"),
    ("[Model]\nCHAT_TEMPLATE = chatml\n[Dataset]\nPROMPT_TEMPLATE = {q}{response}", "config.ini:4: [Dataset] PROMPT_TEMPLATE = {q}{response}: only one of the two can say how a row is written: [Model] CHAT_TEMPLATE = chatml (config.ini:2)"),
    ("[Model]\nREVISION = main", "config.ini:2: [Model] REVISION = main: only models on the Hub or ModelScope have revisions: [Model] BASE_MODEL_NAME = embedded/SmolLM2-135M-Instruct (the default)"),
    ("[Model]\nREVISION = main\nBASE_MODEL_NAME = qwen3:0.6b", "config.ini:2: [Model] REVISION = main: only models on the Hub or ModelScope have revisions: [Model] BASE_MODEL_NAME = qwen3:0.6b (config.ini:3)"),
    ("[Hardware]\nNUM_MACHINES = 2", "config.ini:2: [Hardware] NUM_MACHINES = 2: several machines need the address of machine 0, as host:port: [Hardware] MAIN_PROCESS_ADDRESS is empty (the default)"),
    ("[Hardware]\nNUM_MACHINES = 2\nMACHINE_RANK = 2\nMAIN_PROCESS_ADDRESS = a", "config.ini:3: [Hardware] MACHINE_RANK = 2: must be less than the number of machines: [Hardware] NUM_MACHINES = 2 (config.ini:2)"),
    ("[Hardware]\nMAX_RESTARTS = 1", "config.ini:2: [Hardware] MAX_RESTARTS = 1: one process is not watched by others; set it to 0, or let a service manager start it again with --resume: [Hardware] NUM_PROCESSES = 1 (the default) and [Hardware] NUM_MACHINES = 1 (the default)"),
    ("[Hardware]\nSHARDING = fsdp", "config.ini:2: [Hardware] SHARDING = fsdp: there is only one process to spread the model over: [Hardware] NUM_PROCESSES = 1 (the default) and [Hardware] NUM_MACHINES = 1 (the default)"),
    ("[Hardware]\nDEVICE = cpu\n[Training]\nOPTIM = adamw_8bit", "config.ini:4: [Training] OPTIM = adamw_8bit: this optimizer runs on a GPU only: [Hardware] DEVICE = cpu (config.ini:2)"),
    ("[Hardware]\nDEVICE = cpu\nAUTO_FP16_BF16 = false\nPRECISION = fp16", "config.ini:4: [Hardware] PRECISION = fp16: a CPU trains in bf16 or fp32: [Hardware] DEVICE = cpu (config.ini:2)"),
    ("[Hardware]\nDEVICE = cuda\nFAST_CPU = true", "config.ini:3: [Hardware] FAST_CPU = true: is for training on the CPU: [Hardware] DEVICE = cuda (config.ini:2)"),
    ("[Hardware]\nDEVICE = cuda:1\nNUM_PROCESSES = 2", "config.ini:2: [Hardware] DEVICE = cuda:1: one card cannot serve several processes; write cuda: [Hardware] NUM_PROCESSES = 2 (config.ini:3)"),
]  # fmt: skip


@pytest.mark.parametrize(("text", "message"), CONTRADICTIONS, ids=[text for text, _ in CONTRADICTIONS])
def test_settings_that_do_not_go_together_are_both_named(tmp_path, text, message):
    assert refused(tmp_path, text) == [message]


def test_all_problems_are_told_at_once_in_the_order_of_the_lines(tmp_path):
    text = (
        "[Lora]\nR = 8\n[LoRA]\nR = 0\nR = 4\nhello\n[Quantization]\nLOAD_IN_4BIT = ture\n[Training]\nEVAL_STEPS = 99\n"
    )
    overrides = [
        Override("LoRA", "LORA_ALPHA", "x", "--set LoRA.LORA_ALPHA"),
        Override("Training", "NUM_TRAIN_EPOCHS", "three", "argument 4 (EPOCHS)"),
        Override("Training", "LEARNING_RATE", "2", "--learning-rate"),
        Override("lora", "R", "1", "--set lora.R"),
        Override("LoRA", "RR", "1", "--set LoRA.RR"),
    ]
    assert refused(tmp_path, text, overrides) == [
        "config.ini:1: [Lora] is not a section; did you mean LoRA?",
        "config.ini:4: [LoRA] R = 0: must be at least 1",
        "config.ini:5: [LoRA] R is given twice (first in line 4)",
        "config.ini:6: hello is neither [Section] nor KEY = value",
        "config.ini:8: [Quantization] LOAD_IN_4BIT = ture: expected true or false",
        "config.ini:10: [Training] EVAL_STEPS = 99: is longer than the run: [Training] MAX_STEPS = 60 (the default)",
        "--set lora.R: [lora] is not a section; did you mean LoRA?",
        "--set LoRA.RR: [LoRA] RR is not a setting",
        "--set LoRA.LORA_ALPHA=x: expected a whole number",
        "--learning-rate 2: must be above 0 and at most 1",
        "argument 4 (EPOCHS) = three: expected a whole number".replace("whole number", "number such as 0.1 or 2e-4"),
    ]


def test_a_value_that_cannot_be_read_contradicts_nothing(tmp_path):
    text = "[Training]\nEVAL_STEPS = 10\n[Dataset]\nVALIDATION_SPLIT = zero\n[Hardware]\nNUM_MACHINES = two\nMACHINE_RANK = 1"
    assert refused(tmp_path, text) == [
        "config.ini:4: [Dataset] VALIDATION_SPLIT = zero: expected a number such as 0.1 or 2e-4",
        "config.ini:6: [Hardware] NUM_MACHINES = two: expected a whole number",
    ]


def test_no_more_problems_are_shown_than_a_person_reads(tmp_path):
    path = tmp_path / "config.ini"
    path.write_text("[LoRA]\n" + "".join(f"X{i} = 1\n" for i in range(70)))
    with pytest.raises(UserError) as error:
        settings.load(path, check_files=False)
    title, *lines = str(error.value).split("\n")
    assert title == f"{path}: 70 problems" and len(lines) == 51 and lines[-1] == "  ... and 20 more"


def test_the_title_is_short_from_the_folder_of_the_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("config.ini").write_text("[LoRA]\nR = 0")
    with pytest.raises(UserError, match=r"^config.ini: 1 problem\n  config.ini:2: \[LoRA\] R = 0: must be at least 1$"):
        settings.load(Path("config.ini"), check_files=False)


def test_files_that_the_settings_name_must_be_there(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("")
    text = (
        "[Model]\nBASE_MODEL_NAME = ./none\nCHAT_TEMPLATE = none.jinja\n[Dataset]\nDATASET_FILE = none.jsonl\n"
        "VALIDATION_FILE = folder\n[Training]\nOUTPUT_DIR = file\n"
    )
    assert refused(tmp_path, text, check_files=True) == [
        f"config.ini:2: [Model] BASE_MODEL_NAME = ./none: no such file or folder ({tmp_path}/none)",
        f"config.ini:3: [Model] CHAT_TEMPLATE = none.jinja: no such file ({tmp_path}/none.jinja)",
        f"config.ini:5: [Dataset] DATASET_FILE = none.jsonl: no such file ({tmp_path}/none.jsonl)",
        f"config.ini:6: [Dataset] VALIDATION_FILE = folder: is a folder; a file is expected ({tmp_path}/folder)",
        f"config.ini:8: [Training] OUTPUT_DIR = file: is there already and is not a folder ({tmp_path}/file)",
    ]
    assert load(tmp_path, text).training.output_dir == tmp_path / "file"


def test_an_address_and_a_list_in_the_place_of_a_file_are_told_apart(tmp_path):
    text = "[Dataset]\nDATASET_FILE = https://example.org/rows.jsonl\nVALIDATION_FILE = a.jsonl, b.jsonl\n"
    address, several = refused(tmp_path, text, check_files=True)
    assert address.endswith("rows.jsonl); an address is not fetched: download the file and name it here")
    assert several.endswith("a.jsonl, b.jsonl); one file is expected, not a list")


def test_a_data_file_that_may_not_be_read_and_a_path_that_is_too_long_are_named(tmp_path):
    secret = tmp_path / "secret.jsonl"
    secret.write_text("")
    secret.chmod(0)
    rule = TABLE["Dataset.DATASET_FILE"].rule
    root = os.geteuid() == 0  # whom no permission stops: look as nobody
    if root:
        os.seteuid(65534)
    try:
        assert rules.missing(secret, rule) == f"permission denied ({secret})"
    finally:
        if root:
            os.seteuid(0)
    (line,) = refused(tmp_path, f"[Dataset]\nDATASET_FILE = {'x' * 300}", check_files=True)
    assert "cannot be used as a path: File name too long" in line


def test_a_tracker_whose_package_is_missing_is_named_once_the_packages_count(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    text = "[Training]\nREPORT_TO = trackio"
    assert load(tmp_path, text).training.report_to == "trackio"
    assert refused(tmp_path, text, check_packages=True) == [
        "config.ini:2: [Training] REPORT_TO = trackio: the package trackio is not installed; run .venv/bin/pip install trackio"
    ]


def test_bytes_that_are_no_utf8_are_refused_wherever_they_come_from(tmp_path):
    latin = os.fsdecode(b"caf\xe9")
    override = Override("Dataset", "DATASET_FILE", latin, "--data")
    assert refused(tmp_path, overrides=[override]) == ["--data caf\\udce9: is not UTF-8"]


def test_the_defaults_are_those_of_the_contract(tmp_path):
    assert load(tmp_path).as_dict() == {
        "Model": {
            "BASE_MODEL_NAME": "embedded/SmolLM2-135M-Instruct", "NEW_MODEL_NAME": "my-assistant",
            "MAX_SEQ_LENGTH": 4096, "REVISION": None, "CHAT_TEMPLATE": "auto", "SYSTEM_PROMPT": None,
            "TRUST_REMOTE_CODE": False,
        },
        "LoRA": {
            "R": 16, "LORA_ALPHA": 16, "LORA_DROPOUT": 0.0, "BIAS": "none",
            "TARGET_MODULES": ["q_proj", "k_proj", "v_proj", "o_proj"], "USE_RSLORA": False, "USE_DORA": False,
        },
        "Dataset": {
            "DATASET_FILE": str(tmp_path / "train_data.jsonl"), "FORMAT": "auto", "COLUMNS": None,
            "ENCODING": "auto", "JOIN_TURNS": "auto", "THINKING": "auto", "TOOL_FORM": "ollama", "NULL_WORDS": "stop", "ON_PRIVATE": "warn",
            "VALIDATION_FILE": None,
            "TEST_FILE": None,
            "VALIDATION_SPLIT": 0.1, "TEST_SPLIT": 0, "REPLAY_SHARE": 0, "REPLAY_FILE": "general", "TRAIN_ON": "completion", "TRAIN_TURNS": "all",
            "PROMPT_TEMPLATE": None, "ON_BAD_ROW": "stop", "MAX_ROWS": 0,
        },
        "Training": {
            "PER_DEVICE_TRAIN_BATCH_SIZE": 2, "GRADIENT_ACCUMULATION_STEPS": 4, "LEARNING_RATE": 2e-4,
            "MAX_STEPS": 60, "NUM_TRAIN_EPOCHS": 3, "WARMUP_STEPS": 5, "OUTPUT_DIR": str(tmp_path / "outputs"),
            "LOGGING_STEPS": 1, "WEIGHT_DECAY": 0.01, "LR_SCHEDULER_TYPE": "linear", "MAX_GRAD_NORM": 1.0,
            "OPTIM": "auto", "SEED": 3407, "SAVE_STEPS": 20, "SAVE_TOTAL_LIMIT": 2, "EVAL_STEPS": 20,
            "SAMPLE_STEPS": 0, "EARLY_STOPPING_PATIENCE": 0, "PACKING": "auto", "GRADIENT_CHECKPOINTING": "auto",
            "REPORT_TO": "none", "REPORT_PROJECT": None, "REPORT_NAME": None, "FAIL_IF_WORSE": False,
        },
        "Quantization": {
            "LOAD_IN_4BIT": True, "QUANTIZATION_METHOD": ["q4_k_m"], "KEEP_MERGED": True, "KEEP_F16": False,
        },
        "Hardware": {
            "AUTO_FP16_BF16": True, "PRECISION": "bf16", "ENGINE": "auto", "DEVICE": "auto", "FAST_CPU": "auto",
            "NUM_THREADS": "auto", "NUM_PROCESSES": 1, "NUM_MACHINES": 1, "MACHINE_RANK": 0,
            "MAIN_PROCESS_ADDRESS": None, "MAX_RESTARTS": 0, "SHARDING": "none",
            "LINK_GBPS": "auto",
        },
    }  # fmt: skip


def test_the_shipped_file_shows_every_key_at_its_default_but_for_what_its_small_model_needs():
    found = settings.load(ROOT / "config.ini")
    assert [key for key, *_ in found.differences()] == [
        "LoRA.TARGET_MODULES", "Dataset.VALIDATION_FILE", "Training.LEARNING_RATE",
    ]  # fmt: skip
    assert found.dataset.validation_file == ROOT / "validation_data.jsonl"
    assert list(found.origins) == list(EVERY)
    lines = (ROOT / "config.ini").read_text("utf-8").split("\n")
    assert all(line.startswith("#") or len(line) < 80 for line in lines)


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.ini")), ids=lambda path: path.name)
def test_every_example_is_right_and_says_what_it_needs(path):
    found = settings.load(path)
    assert found.dataset.dataset_file.resolve() == ROOT / "train_data.jsonl"
    head = path.read_text("utf-8").split("[Model]")[0]
    assert "# Needs: " in head and f"./run.sh --config examples/{path.name} " in head
    assert "disk" in head and "memory" in head


def test_the_examples_are_those_that_are_promised():
    models = {path.name: settings.load(path).model.base_model_name for path in (ROOT / "examples").glob("*.ini")}
    assert models == {
        "taide-8b-16gb-gpu.ini": "taide/Llama-3.1-TAIDE-LX-8B-Chat",
        "qwen3-0.6b-intel-cpu.ini": "Qwen/Qwen3-0.6B",
        "qwen2.5-7b-24gb-gpu.ini": "Qwen/Qwen2.5-7B-Instruct",
        "qwen3-8b-24gb-gpu.ini": "Qwen/Qwen3-8B",
        "gemma-3-1b.ini": "google/gemma-3-1b-it",
        "two-gpus.ini": "Qwen/Qwen2.5-7B-Instruct",
        "go-host.ini": "Qwen/Qwen3-0.6B",
    }


def test_values_have_their_types_and_paths_are_absolute(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    text = (
        "[Model]\nBASE_MODEL_NAME = models/x.GGUF\nSYSTEM_PROMPT = One.\\nTwo.\\\\n\n[LoRA]\nBIAS = ALL\n"
        "TARGET_MODULES = all-linear\n[Dataset]\nDATASET_FILE = ~/my data.jsonl\nVALIDATION_FILE = none\n"
        "[Training]\nPACKING = True\nLEARNING_RATE = .5E-3\n[Quantization]\nQUANTIZATION_METHOD = Q4_K, F16\n"
        "[Hardware]\nNUM_THREADS = 4\nDEVICE = CUDA:1\n"
    )
    found = load(tmp_path, text)
    assert found.model.base_model_name == str(tmp_path / "models/x.GGUF")
    assert found.model.system_prompt == "One.\nTwo.\\n"
    assert found.lora.bias == "all" and found.lora.target_modules == ("all-linear",)
    assert found.dataset.dataset_file == Path("/home/me/my data.jsonl") and found.dataset.validation_file is None
    assert found.training.packing is True and found.training.learning_rate == 5e-4
    assert found.quantization.quantization_method == ("q4_k_m", "f16")
    assert found.hardware.num_threads == 4 and found.hardware.device == "cuda:1"


def test_a_model_folder_beside_the_file_is_taken_before_the_hub(tmp_path):
    assert load(tmp_path, "[Model]\nBASE_MODEL_NAME = Qwen/Qwen3-0.6B").model.base_model_name == "Qwen/Qwen3-0.6B"
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    found = load(tmp_path, "[Model]\nBASE_MODEL_NAME = Qwen/Qwen3-0.6B")
    assert found.model.base_model_name == str(tmp_path / "Qwen" / "Qwen3-0.6B")


def test_the_newest_run_as_base_is_the_run_that_it_is_now(tmp_path):
    first, second = tmp_path / "out" / "finetune_1", tmp_path / "out" / "finetune_2"
    for run in (first, second):
        (run / "merged").mkdir(parents=True)
    link = tmp_path / "out" / "latest"
    link.symlink_to("finetune_1")
    for name, found in (("out/latest", first), ("./out/latest/merged", first / "merged"), (str(link), first)):
        assert load(tmp_path, f"[Model]\nBASE_MODEL_NAME = {name}").model.base_model_name == str(found)
    # A link of the user's own is his own business.
    (tmp_path / "mine").symlink_to(first)
    assert load(tmp_path, "[Model]\nBASE_MODEL_NAME = ./mine").model.base_model_name == str(tmp_path / "mine")


def test_paths_of_the_file_start_at_the_file_and_those_of_flags_at_the_caller(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    flag = Override("Training", "OUTPUT_DIR", "out", "--output")
    found = load(tmp_path, "[Dataset]\nDATASET_FILE = a.jsonl", [flag])
    assert found.dataset.dataset_file == tmp_path / "a.jsonl" and found.training.output_dir == tmp_path / "here" / "out"
    (tmp_path / "here" / "link.ini").symlink_to(tmp_path / "config.ini")  # paths start where the link is
    assert settings.load(Path("link.ini"), check_files=False).dataset.dataset_file == tmp_path / "here" / "a.jsonl"


def test_a_text_may_stand_in_a_file_of_its_own(tmp_path):
    (tmp_path / "prompt.txt").write_bytes("你是助手。\r\n\\n # stays \n".encode())
    assert load(tmp_path, "[Model]\nSYSTEM_PROMPT = @prompt.txt").model.system_prompt == "你是助手。\r\n\\n # stays "
    assert load(tmp_path, '[Model]\nSYSTEM_PROMPT = "@prompt.txt"').model.system_prompt == "@prompt.txt"
    (tmp_path / "prompt.txt").write_bytes("助手".encode("gb18030"))
    (line,) = refused(tmp_path, "[Model]\nSYSTEM_PROMPT = @prompt.txt")
    assert line.endswith("prompt.txt:1: is not UTF-8 (byte 0xd6); save it as UTF-8")


def test_a_template_that_the_shipped_file_suggests_is_taken(tmp_path):
    example = re.search(r'such as: (".*")  \(with', (ROOT / "config.ini").read_text("utf-8"))[1]
    found = load(tmp_path, f"[Dataset]\nPROMPT_TEMPLATE = {example}")
    assert found.dataset.prompt_template == "### Question:\n{instruction}\n\n### Answer:\n{response}"


def test_the_bare_word_none_is_none_and_in_quotes_a_text(tmp_path):
    assert load(tmp_path, "[Model]\nSYSTEM_PROMPT = None").model.system_prompt is None
    assert load(tmp_path, '[Model]\nSYSTEM_PROMPT = "none"').model.system_prompt == "none"


def test_the_last_override_wins_and_every_value_knows_its_origin(tmp_path):
    overrides = [Override("LoRA", "R", "x", "--lora-r"), Override("LoRA", "R", "4", "--set LoRA.R")]
    found = load(tmp_path, "[LoRA]\nR = 2\nLORA_ALPHA = 8\n", overrides)
    assert found.lora.r == 4
    assert found.origin("LoRA.R") == "--set LoRA.R"
    assert found.origin("LoRA.LORA_ALPHA") == "config.ini:3"
    assert found.origin("LoRA.BIAS") == "default"
    assert found.differences() == [("LoRA.R", 4, 16, "--set LoRA.R"), ("LoRA.LORA_ALPHA", 8, 16, "config.ini:3")]
    assert found.place("LoRA.R") == "--set LoRA.R=4" and found.place("LoRA.BIAS") == "[LoRA] BIAS = none"


def test_a_default_that_stands_in_the_file_is_nobodys_choice_but_on_the_command_line_it_is(tmp_path):
    flag = Override("Model", "MAX_SEQ_LENGTH", "4096", "--max-length")
    assert not load(tmp_path, "[Model]\nMAX_SEQ_LENGTH = 4096").written("Model.MAX_SEQ_LENGTH")
    assert load(tmp_path, "[Model]\nMAX_SEQ_LENGTH = 2048").written("Model.MAX_SEQ_LENGTH")
    assert load(tmp_path, overrides=[flag]).written("Model.MAX_SEQ_LENGTH")
    assert not load(tmp_path).written("Model.MAX_SEQ_LENGTH")
    chosen = load(tmp_path, overrides=[flag]).with_choice("Model.MAX_SEQ_LENGTH", 2048, "the model's limit")
    assert not chosen.written("Model.MAX_SEQ_LENGTH")


def test_an_automatic_choice_is_remembered_with_its_reason(tmp_path):
    before = load(tmp_path)
    first = before.with_choice("Training.OPTIM", "sgd", "a\n  reason")
    found = first.with_choice("Hardware.DEVICE", "cpu", "no GPU").with_choice("Training.OPTIM", "adafactor", "better")
    assert before.training.optim == "auto" and first.choices == (("Training.OPTIM", "sgd", "a reason"),)
    assert found.choices == (("Hardware.DEVICE", "cpu", "no GPU"), ("Training.OPTIM", "adafactor", "better"))
    assert found.get("Training.OPTIM") == "adafactor" and found.origin("Training.OPTIM") == "automatic: better"
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.training.optim = "sgd"


def test_defaults_that_do_not_fit_the_run_are_shortened_with_a_reason(tmp_path):
    found = settings.clamp(load(tmp_path, "[Training]\nMAX_STEPS = 3\nEVAL_STEPS = 20\nSAVE_STEPS = 2"), 3)
    assert found.choices == (
        ("Training.WARMUP_STEPS", 0, "the run has 3 steps only"),
        ("Training.EVAL_STEPS", 3, "the run has 3 steps only"),
    )
    assert found.training.save_steps == 2
    assert settings.clamp(load(tmp_path), 20).choices == ()
    assert settings.clamp(load(tmp_path), 5).training.warmup_steps == 0


def test_what_somebody_wrote_is_not_shortened_but_refused(tmp_path):
    text = "[Training]\nMAX_STEPS = 0\nWARMUP_STEPS = 10\nEVAL_STEPS = 50\nSAVE_STEPS = 30"
    found = load(tmp_path, text)
    assert settings.clamp(found, 50) == found
    with pytest.raises(UserError) as error:
        settings.clamp(found, 40)
    assert str(error.value) == (
        f"{tmp_path}/config.ini: the run has 40 steps\n"
        "  config.ini:4: [Training] EVAL_STEPS = 50: the run has 40 steps only"
    )
    flag = Override("Training", "WARMUP_STEPS", "5", "--set Training.WARMUP_STEPS")
    with pytest.raises(UserError, match="--set Training.WARMUP_STEPS=5: the run has 4 steps only"):
        settings.clamp(load(tmp_path, "[Training]\nMAX_STEPS = 0", [flag]), 4)


def test_what_is_set_and_not_used_is_noted(tmp_path):
    assert contradictions.unused(load(tmp_path)) == []
    assert contradictions.unused(load(tmp_path, "[Training]\nNUM_TRAIN_EPOCHS = 3")) == []  # as the shipped file has it
    assert contradictions.unused(load(tmp_path, "[Training]\nNUM_TRAIN_EPOCHS = 2")) == [
        "NUM_TRAIN_EPOCHS is not used: MAX_STEPS = 60 sets the length"
    ]
    text = (
        "[Training]\nMAX_STEPS = 0\nNUM_TRAIN_EPOCHS = 2.5\nREPORT_NAME = x\n[Hardware]\nPRECISION = fp32\n"
        "MAIN_PROCESS_ADDRESS = host:1\n[Dataset]\nREPLAY_FILE = /a.jsonl\n"
    )
    assert contradictions.unused(load(tmp_path, text)) == [
        "MAX_STEPS is 0: NUM_TRAIN_EPOCHS = 2.5 sets the length",
        "PRECISION is not used: AUTO_FP16_BF16 = true chooses it",
        "REPORT_NAME is not used: REPORT_TO = none",
        "REPLAY_FILE is not used: REPLAY_SHARE = 0",
        "MAIN_PROCESS_ADDRESS is not used: NUM_MACHINES = 1",
    ]
    spread = "[Hardware]\nDEVICE = {}\nNUM_PROCESSES = 2\nSHARDING = fsdp-offload\n"
    assert contradictions.unused(load(tmp_path, spread.format("cuda"))) == []
    assert contradictions.unused(load(tmp_path, spread.format("cpu"))) == [
        "SHARDING = fsdp-offload is fsdp on a CPU: the shares are in the machine's memory in any case"
    ]


def test_the_name_of_files_has_no_slash_and_no_colon(tmp_path):
    assert load(tmp_path, "[Model]\nNEW_MODEL_NAME = me/qwen3:0.6b").name == "me-qwen3-0.6b"


def any_text(**how):
    return st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30, **how)


def legal(item):
    """Any legal value of a setting, as Settings would hold it."""
    rule, key = item.rule, item.key
    special = {
        "BASE_MODEL_NAME": st.sampled_from(["Qwen/Qwen3-0.6B", "qwen3:0.6b", "/a b/#c ;d/模型.gguf", "/e\n\"f\"\\n"]),
        "NEW_MODEL_NAME": st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.\-]{0,20}(:[0-9a-z]{1,9})?", fullmatch=True),
        "CHAT_TEMPLATE": st.sampled_from(["auto", "chatml", "/a b/ #c.jinja"]),
        "PROMPT_TEMPLATE": st.none() | any_text().map(lambda t: f" {re.sub('[{}]', '', t)}{{q}}\n{{response}} "),
        "QUANTIZATION_METHOD": st.lists(st.sampled_from((*names.QUANTISATIONS, *names.NEED_IMPORTANCE_MATRIX)), min_size=1, unique=True).map(tuple),
        "TARGET_MODULES": st.just(("all-linear",)) | st.lists(st.from_regex(r"[a-z_]{1,9}", fullmatch=True), min_size=1, unique=True).map(tuple),
        "COLUMNS": st.none() | st.sampled_from(["instruction: Frage, output: Antwort", '"text: a, b"']),
        "ENCODING": st.sampled_from(["auto", "gbk", "utf-8", "cp1252"]),
        "REPLAY_FILE": st.sampled_from(["general", "/a b/#c/文.jsonl", "hf:owner/name:config:split"]),
        "MAIN_PROCESS_ADDRESS": st.none() | st.sampled_from(["10.0.0.5:29500", "host", "[::1]:80"]),
    }  # fmt: skip
    if key in special:
        return special[key]
    if rule.one_of:
        return st.sampled_from(rule.one_of)
    low = rule.at_least if rule.at_least is not None else rule.above
    high = rule.at_most if rule.at_most is not None else rule.below
    if item.kind.startswith("int"):
        whole = st.integers(low, high or rules.LARGEST_INT)
        return st.just("auto") | whole if item.kind.endswith("Auto") else whole
    if item.kind.startswith("float"):
        most = 1e300 if high is None else high
        some = st.floats(low, most, exclude_min=rule.above is not None, exclude_max=rule.below is not None)
        return st.just("auto") | some if item.kind.endswith("Auto") else some
    path = any_text(min_size=1).map(lambda t: Path("/") / t.lstrip("/"))
    return {
        "bool": st.booleans(), "bool | Auto": st.sampled_from([True, False, "auto"]),
        "bool | Auto | Int8": st.sampled_from([True, False, "auto", "int8"]), "Path": path, "Path | None": st.none() | path,
        "str | None": st.none() | any_text(min_size=1).filter(str.strip),
    }[item.kind]  # fmt: skip


SOME_LEGAL = st.lists(st.sampled_from(list(TABLE)), max_size=5, unique=True).flatmap(
    lambda keys: st.fixed_dictionaries({key: legal(TABLE[key]) for key in keys})
)


@pytest.mark.slow
@ANY_FIXTURE
@given(SOME_LEGAL)
def test_the_effective_settings_read_back_the_same_for_every_legal_value(tmp_path, chosen):
    found = load(tmp_path)
    for key, value in chosen.items():
        found = found.with_choice(key, value, 'tried # ; "quoted" {out}')
    bad = contradictions.find(dataclasses.replace(found, choices=(), origins=dict.fromkeys(TABLE, "config.ini:1")))
    assume(not bad)
    path = tmp_path / "effective.ini"
    path.write_bytes(found.to_ini().encode("utf-8"))
    assert settings.load(path, check_files=False) == found


@ANY_FIXTURE
@given(st.sampled_from(list(TABLE)), any_text())
def test_no_value_breaks_the_loader(tmp_path, key, text):
    item = TABLE[key]
    try:
        found = load(tmp_path, overrides=[Override(item.section, item.key, text, "--set X.Y")], check_files=True)
        json.dumps(found.as_dict(), allow_nan=False)
    except UserError as error:
        assert all("\n" not in problem and len(problem) < 1000 for problem in error.problems)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_numbers_are_written_with_all_their_digits(number):
    text = rules.write(number)
    assert float(text) == number and math.copysign(1, float(text)) == math.copysign(1, number)
    assert len(text) <= len(repr(number))


def test_what_is_no_number_is_written_so_and_read_by_nobody():
    assert [rules.write(x) for x in (math.nan, math.inf, -math.inf)] == ["nan", "inf", "-inf"]


def test_small_and_round_numbers_are_written_as_people_do():
    assert [rules.write(x) for x in (2e-4, 3.0, 0.1, 0.0, 1e300, 12345.0)] == [
        "2e-4",
        "3",
        "0.1",
        "0",
        "1e300",
        "12345",
    ]


def test_the_effective_settings_say_where_each_value_came_from(tmp_path):
    found = load(tmp_path, "[LoRA]\nR = 4").with_choice("Training.OPTIM", "sgd", "no CUDA device")
    lines = found.to_ini().split("\n")
    assert "R = 4  # config.ini:2" in lines
    assert "OPTIM = sgd  # automatic: no CUDA device" in lines
    assert "LEARNING_RATE = 2e-4  # default" in lines
    assert "SYSTEM_PROMPT =   # default" in lines
    again = settings.load(tmp_path / "config.ini", check_files=False)
    assert again == load(tmp_path, "[LoRA]\nR = 4")


def test_a_runs_own_file_still_knows_who_chose_each_value(tmp_path):
    asked = load(
        tmp_path,
        '[Model]\nSYSTEM_PROMPT = "a # b"\n[LoRA]\nR = 4\n[Training]\nEVAL_STEPS = 20\n',
        [Override("Training", "MAX_STEPS", "9", "--set Training.MAX_STEPS")],
    )
    asked = asked.with_choice("Training.OPTIM", "sgd", "no # CUDA {device}").with_choice("LoRA.R", 2, "small")
    run = tmp_path / "run" / "config.ini"
    run.parent.mkdir()
    run.write_text(asked.to_ini(), encoding="utf-8")
    again = settings.of_run(run, check_files=False)
    assert again == asked
    expected = {key: asked.origin(key) for key in TABLE} | {"Training.OPTIM": "automatic: no # CUDA (device)"}
    assert {key: again.origin(key) for key in TABLE} == expected
    assert {key: again.written(key) for key in TABLE} == {key: asked.written(key) for key in TABLE}
    assert [row[:2] + row[3:] for row in again.differences()] == [
        ("Model.SYSTEM_PROMPT", "a # b", "config.ini:2"),
        ("LoRA.R", 2, "automatic: small"),
        ("Training.MAX_STEPS", 9, "--set Training.MAX_STEPS"),
        ("Training.OPTIM", "sgd", "automatic: no # CUDA (device)"),
    ]


def test_a_default_of_another_settings_file_is_not_held_against_a_run_that_is_resumed(tmp_path):
    mine = tmp_path / "mine.ini"
    mine.write_text("[Training]\nEVAL_STEPS = 20\n[Dataset]\nVALIDATION_SPLIT = 0\n", encoding="utf-8")
    run = tmp_path / "config.ini"
    run.write_text(settings.load(mine, check_files=False).to_ini(), encoding="utf-8")
    again = settings.of_run(run, check_files=False)
    assert again.origin("Training.EVAL_STEPS") == "mine.ini:2" and not again.written("Training.EVAL_STEPS")
    assert contradictions.find(again) == []


def test_what_somebody_changed_in_a_runs_own_file_is_no_default(tmp_path):
    run = tmp_path / "config.ini"
    text = load(tmp_path).to_ini()
    run.write_text(text.replace("R = 16  # default", "R = 32  # default"), encoding="utf-8")
    assert settings.of_run(run, check_files=False).origin("LoRA.R").startswith("config.ini:")


def test_a_comment_behind_quotation_marks_may_hold_what_it_likes(tmp_path):
    assert load(tmp_path, '[Model]\nSYSTEM_PROMPT = "a"  # {b}\n').model.system_prompt == "a"


def test_a_path_is_told_without_dots_where_it_is_the_same_place(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "a" / "b")
    text = "[Training]\nOUTPUT_DIR = a/b/../out\n[Dataset]\nDATASET_FILE = link/../rows.jsonl\n"
    found = load(tmp_path, text)
    assert found.training.output_dir == tmp_path / "a" / "out"
    assert found.dataset.dataset_file == tmp_path / "link" / ".." / "rows.jsonl", "behind a link it is another place"


def test_every_setting_has_a_reader_and_a_help_of_one_line():
    for item in EVERY.values():
        assert item.kind in rules.READERS
        assert item.rule.help and "\n" not in item.rule.help and "|" not in item.rule.help and len(item.rule.help) < 100


def test_the_reference_has_a_row_for_every_setting():
    rows = [line for line in table.reference().split("\n") if line.startswith("| `")]
    assert [re.match(r"\| `([A-Z0-9_]+)` ", row)[1] for row in rows] == [item.key for item in EVERY.values()]
    assert "| `LORA_DROPOUT` | `0` | number, from 0 up to, not including, 1 | 0 is Unsloth's fast path |" in rows
    assert (
        "| `NUM_THREADS` | `auto` | auto, or a whole number, from 1 to 4096 | CPU threads; auto is one per core |"
        in rows
    )
    assert all(row.count(" | ") == 3 for row in rows)


def test_formats_are_those_of_the_rows():
    columns = pytest.importorskip("training.data.columns")
    assert TABLE["Dataset.FORMAT"].rule.one_of == ("auto", "messages", "conversations", *columns.PAIRS, "text")
    assert set(column_names.FIELDS) == columns.KNOWN | {"system", "context", "history", "tools", "reasoning_content"}


def test_optimizers_and_schedulers_are_known_to_transformers():
    training_args = (Path(sys.prefix) / "lib").glob("python*/site-packages/transformers")
    (package,) = list(training_args) or pytest.skip("transformers is not installed")
    names_there = (package / "training_args.py").read_text() + (package / "trainer_utils.py").read_text()
    for name in (*table.OPTIMIZERS[1:], *table.SCHEDULERS):
        assert f'= "{name}"' in names_there, name


@pytest.mark.slow
def test_the_settings_need_nothing_but_the_standard_library():
    code = "import sys, json; from training import settings; from training.settings import command_line; print(json.dumps(list(sys.modules)))"
    command = [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(ROOT)!r}); {code}"]
    modules = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    top = {name.split(".")[0] for name in modules}
    assert top <= {*sys.stdlib_module_names, "training", "__main__", "__mp_main__"} and "training" in top


def test_unreadable_files_are_told_like_all_else(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.ini: no such file$"):
        settings.load(tmp_path / "nowhere.ini")
    assert ini_file.LARGEST == 1 << 20


def test_loading_takes_milliseconds(tmp_path):
    load(tmp_path)
    start = time.process_time()
    load(tmp_path, (ROOT / "config.ini").read_text("utf-8"))
    assert time.process_time() - start < 0.1


def test_rows_given_on_the_command_line_are_not_measured_on_the_validation_rows_of_the_file(tmp_path):
    for name in ("own.jsonl", "held.jsonl", "mine.jsonl"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    config = tmp_path / "config.ini"
    config.write_text("[Dataset]\nDATASET_FILE = own.jsonl\nVALIDATION_FILE = held.jsonl\n", encoding="utf-8")
    assert settings.load(config).dataset.validation_file == tmp_path / "held.jsonl"
    mine = Override("Dataset", "DATASET_FILE", str(tmp_path / "mine.jsonl"), "argument 1 (DATA)")
    found = settings.load(config, [mine])
    assert found.dataset.validation_file is None
    assert "argument 1 (DATA) gives other rows than the file" in found.origin("Dataset.VALIDATION_FILE")
    held = Override("Dataset", "VALIDATION_FILE", str(tmp_path / "held.jsonl"), "--set Dataset.VALIDATION_FILE")
    assert settings.load(config, [mine, held]).dataset.validation_file == tmp_path / "held.jsonl"


def test_nor_on_its_test_rows(tmp_path):
    for name in ("own.jsonl", "tested.jsonl", "mine.jsonl"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    config = tmp_path / "config.ini"
    config.write_text("[Dataset]\nDATASET_FILE = own.jsonl\nTEST_FILE = tested.jsonl\n", encoding="utf-8")
    assert settings.load(config).dataset.test_file == tmp_path / "tested.jsonl"
    mine = Override("Dataset", "DATASET_FILE", str(tmp_path / "mine.jsonl"), "--data")
    found = settings.load(config, [mine])
    assert found.dataset.test_file is None
    assert "whose test rows do not belong to them" in found.origin("Dataset.TEST_FILE")


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ("LoRA", "TARGET_MODULES", "is not the name of a module"),
        ("Quantization", "QUANTIZATION_METHOD", "is not a quantisation of llama.cpp"),
    ],
)
def test_a_name_over_two_lines_is_told_in_one(section, key, said, tmp_path):
    with pytest.raises(UserError) as caught:
        load(tmp_path, overrides=[Override(section, key, "q\nproj" + "x" * 2000, f"--set {section}.{key}")])
    (problem,) = caught.value.problems
    assert "q projx" in problem and said in problem
    assert "\n" not in problem and len(problem) < 1000


@pytest.mark.parametrize(
    ("content", "arguments", "title"),
    [
        ("[LoRA]\nR = 0\n", [], "config.ini: 1 problem"),
        ("[Model]\n", ["--set", "LoRA.R=0"], "arguments: 1 problem"),
        ("[Model]\n", ["--set", "Nonsense.R=0", "--epochs", "x"], "arguments: 2 problems"),
        ("[LoRA]\nR = 0\n", ["--epochs", "x"], "config.ini and arguments: 2 problems"),
        ("[Training]\nMAX_STEPS = 0\n", ["--set", "Training.NUM_TRAIN_EPOCHS=0"], "arguments: 1 problem"),
    ],
)
def test_problems_are_those_of_the_place_where_they_are(tmp_path, monkeypatch, content, arguments, title):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        load(tmp_path, content, command_line.parse(arguments).overrides)
    assert error.value.title == title
