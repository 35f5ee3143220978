"""Names of other tools and guides: which are taken, and what is said of the others. Never the name of something else."""

import pytest

from training import settings
from training.errors import UserError
from training.settings import names, other_names
from training.settings.command_line import parse
from training.settings.loading import unknown_key
from training.settings.other_names import DONE_BY, IMPLIED, MEANT, SAID, TAKEN, hint, hint_for_section, settings_of
from training.settings.table import EVERY_SECTION, SECTIONS, TABLE
from training.settings.usage import COMMANDS, SWITCHES
from training.system import shell

# Of the arguments of transformers, TRL, PEFT, LLaMA-Factory, axolotl and mlx-lm: those that have no counterpart here, and
# near whose letters stands the name of something else.
OF_NOTHING_HERE = (
    *("eval_accumulation_steps", "per_device_eval_batch_size", "optim_target_modules", "use_bdlora", "use_qalora"),
    *("target_modules_bd_a", "eval_on_start", "eval_delay", "load_best_model_at_end", "lora_model_dir", "hub_model_id"),
    *("model_type", "model_dir", "test_batches", "num_layers", "save_safetensors", "loss_type", "rate_limit", "test"),
    *(
        "max_new_tokens",
        "num_workers",
        "max_grad_value",
        "dataset_kwargs",
        "output_router_logits",
        "top_k",
        "seeds_of_x",
    ),
)


def problems(*argv):
    with pytest.raises(UserError) as error:
        parse(argv)
    return error.value.problems[:-1]


def test_every_name_has_one_meaning():
    tables = {"taken": TAKEN, "implied": IMPLIED, "meant": MEANT, "done by": DONE_BY, "said": SAID}
    for one in tables:
        for other in tables:
            assert one == other or not set(tables[one]) & set(tables[other]), (one, other)
    assert set(TAKEN.values()) | set(MEANT.values()) <= set(TABLE)
    assert {key for pairs in IMPLIED.values() for made in pairs.values() for key, _ in made} <= set(TABLE)
    flags = {by for by in DONE_BY.values() if by.startswith("--")}
    assert flags <= {*COMMANDS, *SWITCHES, "--help", "--config", "--output", "--model"}
    for name in (*TAKEN, *IMPLIED, *MEANT, *DONE_BY, *SAID):
        assert name == other_names.plain(name)


@pytest.mark.parametrize(
    ("flag", "said"),
    [
        ("--lr", "; write --learning-rate"),
        ("--rank", "; write --lora-r"),
        ("--steps", "; write --max-steps"),
        ("--random-seed", "; write --seed"),
        ("--quant", "; write --quantization-method"),
        ("--val", "; write --validation-file"),
        ("--optimizer", "; write --optim"),
        ("--gpu", "; write --device"),
        ("--dry-run", "; write --check"),
        ("--resume-from-checkpoint", "; write --resume"),
        ("-c", "; write --config"),
        ("-model", "; write --model"),
        ("--export", "; ./export_ollama.sh does that"),
        ("--version", "; every run's report.json names the versions of all that was used"),
        ("--load-in-8bit", "; 8 bit is not there; LOAD_IN_4BIT loads in 4"),
        ("--use-lora", "; what is trained is always a LoRA adapter"),
        ("--hf-token", "; tokens are read from the environment (HF_TOKEN, WANDB_API_KEY)"),
    ],
)
def test_a_usual_name_is_answered_with_what_to_write_here(flag, said):
    assert problems(flag, "1") == [f"{flag} is not a flag{said}"]


@pytest.mark.parametrize("name", OF_NOTHING_HERE)
def test_nothing_is_guessed_where_only_the_letters_are_near(name):
    assert hint(f"--{name.replace('_', '-')}", "flag") == ""
    assert hint(name, "python") == ""
    for section in SECTIONS:
        assert hint(name.upper(), "key", section) == ""


@pytest.mark.parametrize(
    ("flag", "meant"),
    [
        ("--epoch", "--epochs"),
        ("--lerning-rate", "--learning-rate"),
        ("--learningrate", "--learning-rate"),
        ("--chekc", "--check"),
    ],
)
def test_a_slip_of_the_fingers_is_still_seen(flag, meant):
    assert hint(flag, "flag") == f"; did you mean {meant}?"


def test_a_value_is_guessed_at_by_a_slip_only():
    assert names.did_you_mean("cosien", ["cosine", "constant"]) == "; did you mean cosine?"
    assert names.did_you_mean("q4_km", ["q4_k_m", "q4_k_s"]) == "; did you mean q4_k_m?"
    assert names.did_you_mean("q6_k_m", ["q4_k_m", "q5_k_m"]) == ""
    assert names.did_you_mean("abcde", ["abcdf", "abcdg"]) == "; did you mean abcdf or abcdg?"


@pytest.mark.parametrize(
    ("section", "key", "said"),
    [
        ("Training", "LR", "; write LEARNING_RATE"),
        ("Training", "EPOCHS", "; write NUM_TRAIN_EPOCHS"),
        ("Training", "lora_r", "; write R in [LoRA]"),
        ("LoRA", "RANK", "; write R"),
        ("Model", "MODEL_NAME", "; write BASE_MODEL_NAME"),
        ("Dataset", "VAL_DATA", "; write VALIDATION_FILE"),
        ("Training", "BF16", "; write AUTO_FP16_BF16 = false, PRECISION = bf16"),
        ("Training", "WARMUP_RATIO", "; the warm-up is given in steps: WARMUP_STEPS"),
        ("LoRA", "RR", ""),
    ],
)
def test_the_same_is_said_of_keys_in_the_file(section, key, said):
    assert unknown_key(section, key) == f"[{section}] {key} is not a setting{said}"


def test_the_same_is_said_of_sections():
    assert hint_for_section("Data") == "; write [Dataset]"
    assert hint_for_section("peft") == "; write [LoRA]"
    assert hint_for_section("Modle") == "; did you mean Model?"
    assert hint_for_section("Weather") == f"; there are {', '.join(EVERY_SECTION)}"


@pytest.mark.parametrize(
    ("word", "instead"),
    [
        ("status", "write ./run.sh --status"),
        ("help", "write ./run.sh --help"),
        ("resume", "write ./run.sh --resume"),
        ("export", "./export_ollama.sh does that"),
        ("train", "./run.sh without a word trains"),
        ("version", "every run's report.json names the versions of all that was used"),
    ],
)
def test_a_command_as_a_bare_word_is_no_data_file(word, instead, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    instead = instead.replace("./run.sh --", f"{shell.command('run.sh')} --")
    assert problems(word, "x") == [f"{word} is read as DATA, and there is no such file; {instead}"]
    (tmp_path / word).write_text("a row")
    assert parse([word]).overrides[0].value == word


@pytest.mark.parametrize(("name", "key"), TAKEN.items())
def test_every_name_that_is_taken_sets_its_setting(name, key):
    value = "true" if TABLE[key].kind.startswith("bool") else "7"
    for flag in (f"--{name}", f"--{name.replace('-', '_')}"):
        assert [(f"{o.section}.{o.key}", o.value) for o in parse([flag, value]).overrides] == settings_of(name, value)
        assert settings_of(name, value)[0] == (key, value)


def test_a_flag_that_is_true_or_false_may_stand_alone():
    def given(*argv):
        return {f"{o.section}.{o.key}": o.value for o in parse(argv).overrides}

    assert given("--use-quantization") == {"Quantization.LOAD_IN_4BIT": "true"}
    assert given("--use-quantization", "false") == {"Quantization.LOAD_IN_4BIT": "false"}
    assert given("--use-dora", "rows.jsonl") == {"Dataset.DATASET_FILE": "rows.jsonl", "LoRA.USE_DORA": "true"}
    assert given("--packing", "auto") == {"Training.PACKING": "auto"}
    assert given("--fp16") == {"Hardware.AUTO_FP16_BF16": "false", "Hardware.PRECISION": "fp16"}
    assert given("--fp16=false", "--bf16") == {"Hardware.AUTO_FP16_BF16": "false", "Hardware.PRECISION": "bf16"}
    assert given("--use_wandb") == {"Training.REPORT_TO": "wandb"}
    assert problems("--bf16=maybe") == ["--bf16 maybe: expected true or false"]


def test_the_form_of_a_file_is_its_ending():
    def given(*argv):
        return {f"{o.section}.{o.key}": o.value for o in parse(argv).overrides}

    assert given("--dataset-format", "jsonl", "--data", "a.json")["Dataset.FORMAT"] == "auto"
    assert given("--dataset-format", "sharegpt")["Dataset.FORMAT"] == "conversations"
    assert given("--dataset-format", "alpaca")["Dataset.FORMAT"] == "alpaca"
    assert problems("--dataset-format", "json", "--dataset-path", "a.txt") == [
        "--dataset-format json: a.txt is read as txt, as its ending says; rename the file, or leave this out"
    ]


def test_an_error_names_the_flag_that_was_typed(tmp_path):
    (tmp_path / "c.ini").write_text("[Hardware]\nDEVICE = cpu")
    overrides = parse(["--num-epochs", "0", "--save_steps", "x", "--fp16"]).overrides
    with pytest.raises(UserError) as error:
        settings.load(tmp_path / "c.ini", overrides, check_files=False)
    assert error.value.problems == [
        "--num-epochs 0: must be above 0 and at most 10000",
        "--save-steps x: expected a whole number",
        "--fp16: Hardware.PRECISION=fp16: a CPU trains in bf16 or fp32: [Hardware] DEVICE = cpu (c.ini:2)",
    ]
