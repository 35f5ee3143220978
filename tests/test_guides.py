"""The commands of five public guides, as they are typed there (tests/support/guides.py): none is refused, and they do it.

On a tiny model; with `--guides-model embedded` every training that is typed is done, on the shipped model (half an hour).
"""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import small
from tests.support.guides import BLOCKS, Block
from tests.support.paths import ROOT
from tests.support.programs import Ended, finetune
from tests.support.tiny import write_tiny_config
from training import convert_to_gguf, evaluate_model, prepare_data, settings
from training.settings import command_line

# Its runs need no real vocabulary.
tiny_model, undisturbed = small.tiny_model, small.undisturbed

TRAINS = ("run.sh", "finetune.py", "train_lora.py")


def typed(block: Block, **names: str | Path) -> list[str]:
    return shlex.split(block.typed.format(**names))


def names(folder: Path, model: str | Path = "embedded/SmolLM2-135M-Instruct") -> dict[str, str | Path]:
    data = {}
    for name in ("DATA", "VAL", "TEST"):
        data[name] = folder / f"{name.lower()}.json"
        rows = [{"instruction": f"{name}: {n} + {n}?", "input": "", "output": f"{2 * n}"} for n in range(16)]
        data[name].write_text(json.dumps(rows), encoding="utf-8")
    return {**data, "OUT": folder / "out", "MODEL": model}


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.program in TRAINS],
    ids=lambda block: f"{block.guide}: {block.typed}"[:90],
)
def test_a_training_that_a_guide_types_is_understood_whole(block, tmp_path):
    known = names(tmp_path)
    argv = typed(block, **known)
    arguments = command_line.parse(argv)
    made = settings.load(arguments.config, arguments.overrides)
    values = {f"{given.section}.{given.key}": given for given in arguments.overrides}
    # Every value that was typed has come to a setting, of which it is the text.
    for value in (word for word in argv if not word.startswith("--")):
        given = [key for key, override in values.items() if override.value == value]
        assert given or value == "json", value
        assert all(made.get(key) is not None for key in given)
    assert made.training.max_steps == (0 if any("epochs" in word for word in argv) or argv[3:4] == ["3"] else 60)


@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.program not in (*TRAINS, "create_sample_data.py")],
    ids=lambda block: f"{block.program} {block.typed}",
)
def test_the_arguments_of_the_other_programs_are_known(block, tmp_path):
    parsers = {
        "prepare_data.py": prepare_data._parser,
        "evaluate_model.py": evaluate_model.parser,
        "convert_to_gguf.py": convert_to_gguf.parser,
    }
    argv = typed(block, **names(tmp_path))
    parsed = vars(parsers[block.program]().parse_args(argv))
    assert {str(value) for value in parsed.values()} >= {word for word in argv if not word.startswith("--")}


def ran(folder: Path, script: str, *argv: str | Path, typed: str = "") -> Ended:
    """Run a program in the folder that its user stands in; `typed`: what they say to it."""
    if script.endswith(".py") and not typed:
        return finetune(*argv, script=script, cwd=folder, timeout=1800)
    started = [ROOT / script] if script.endswith(".sh") else [sys.executable, ROOT / "training" / script]
    done = subprocess.run(
        [str(word) for word in (*started, *argv)],
        cwd=folder, input=typed, capture_output=True, text=True, encoding="utf-8", timeout=1800,
    )  # fmt: skip
    return Ended(done.returncode, done.stdout, done.stderr)


def block(program: str, part: str = "") -> Block:
    return next(one for one in BLOCKS if one.program == program and part in one.typed)


@pytest.fixture
def whole(request: pytest.FixtureRequest) -> bool:
    """Whether the trainings go to their end, on the shipped model."""
    return request.config.getoption("--guides-model") == "embedded"


@pytest.fixture
def base(whole: bool, tiny_model: Path) -> str | Path:
    return "embedded/SmolLM2-135M-Instruct" if whole else tiny_model


# What a machine lacks for a block, and what its user is then told, with the exit code.
LACKING = {
    "qwen3:0.6b": (3, "error: Qwen/qwen3:0.6b-Instruct is Qwen/Qwen3-0.6B on the Hub: "),
    "--use-wandb": (2, "the package wandb is not installed; run .venv/bin/pip install wandb"),
}


# Trained in any case, in the tests of a course and of a service below.
DONE_BELOW = ("--use-quantization", "--num_epochs")


@pytest.mark.tiny
@pytest.mark.parametrize(
    "block",
    [block for block in BLOCKS if block.program in TRAINS and not any(part in block.typed for part in DONE_BELOW)],
    ids=lambda block: f"{block.guide}: {block.typed}"[:90],
)
def test_a_training_that_a_guide_types_is_taken_and_done(block, base, whole, tmp_path):
    """With the settings file of the repository, a line of it changed: where the runs are written."""
    if not whole:
        pytest.skip("--guides-model embedded does it")
    known = names(tmp_path, base)
    settings_file = ("--set", f"Training.OUTPUT_DIR={known['OUT']}") if "{OUT}" not in block.typed else ()
    ended = ran(tmp_path, block.program, *typed(block, **known), *settings_file)
    lacking = [said for part, said in LACKING.items() if part in block.typed]
    if lacking and ended.code:
        assert ended.code == lacking[0][0] and lacking[0][1] in ended.stderr, ended.stderr
        return
    assert ended.code == 0, ended.stderr
    run = Path(ended.stdout.strip())
    assert json.loads((run / "status.json").read_text("utf-8"))["state"] == "completed"
    assert list(run.glob("*.gguf")) and (run / "Modelfile").is_file() and (run.parent / "latest").resolve() == run


@pytest.mark.tiny
def test_the_course_is_done_from_its_first_line_to_its_last(tmp_path, base, whole):
    """Sample rows, cleaned and split; trained; evaluated by the adapter's name; converted by the merged model's."""
    known = names(tmp_path, base)
    for program, part in (("create_sample_data.py", ""), ("prepare_data.py", "")):
        ended = ran(tmp_path, program, *typed(block(program, part), **known))
        assert ended.code == 0, ended.stderr
    out = Path(known["OUT"])
    assert {path.name for path in out.glob("train_*.jsonl")} == {
        "train_train.jsonl", "train_validation.jsonl", "train_test.jsonl",
    }  # fmt: skip
    known["DATA"], known["VAL"] = out / "train_train.jsonl", out / "train_validation.jsonl"

    ended = ran(tmp_path, "train_lora.py", *typed(block("train_lora.py", "--use-quantization"), **known))
    assert ended.code == 0, ended.stderr
    run = Path(ended.stdout.strip())
    assert (out / "lora_adapter").resolve() == run / "adapter" and (out / "merged_model").resolve() == run / "merged"
    used = json.loads((run / "report.json").read_text("utf-8"))["settings"]
    assert (used["LoRA"]["R"], used["Training"]["NUM_TRAIN_EPOCHS"]) == (8, 3)

    ended = ran(tmp_path, "evaluate_model.py", *typed(block("evaluate_model.py", "--test-data"), **known))
    assert ended.code == 0, ended.stderr
    rows = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 16 and "tuned_answer" in rows[0]

    ended = ran(
        tmp_path,
        "evaluate_model.py",
        *typed(block("evaluate_model.py", "--interactive"), **known),
        typed="/compare What is 7?\n",
    )
    assert ended.code == 0, ended.stderr
    assert "base" in ended.stdout and "tuned" in ended.stdout

    for kind in ("Q4_K_M", "Q5_K_M", "Q8_0") if whole else ("Q8_0",):
        ended = ran(tmp_path, "convert_to_gguf.py", *typed(block("convert_to_gguf.py", kind), **known))
        assert ended.code == 0, ended.stderr
        assert all(Path(line).is_file() for line in ended.stdout.splitlines())


@pytest.mark.tiny
def test_a_service_s_underscores_train_and_its_history_has_progress(tmp_path, base):
    known = names(tmp_path, base)
    ended = ran(tmp_path, "train_lora.py", *typed(block("train_lora.py", "--num_epochs"), **known))
    assert ended.code == 0, ended.stderr
    listed = ran(tmp_path, "finetune.py", "--history", "--json", "--output", known["OUT"])
    (row,) = json.loads(listed.stdout)
    assert (row["run"], row["state"], row["progress"]) == (Path(ended.stdout.strip()).name, "completed", 100)


@pytest.mark.tiny
def test_the_next_line_of_the_first_guide_finds_its_modelfile(undisturbed, tmp_path):
    """`./export_ollama.sh .../merged my-name`, then `ollama create my-name -f Modelfile.my-name` in the same folder."""
    run = shutil.copytree(undisturbed, tmp_path / undisturbed.name)
    ended = ran(tmp_path, "export_ollama.sh", "--modelfile-only", run / "merged", "my-name")
    assert ended.code == 0, ended.stderr
    lines = (tmp_path / "Modelfile.my-name").read_text("utf-8").splitlines()
    assert [Path(line.removeprefix("FROM ")).is_file() for line in lines if line.startswith("FROM ")] == [True]


@pytest.mark.slow
def test_the_program_by_its_other_name_answers_the_same(tmp_path):
    config = write_tiny_config(tmp_path, tmp_path / "no-model")
    told = [ran(tmp_path, name, "--config", config, "--lr", "1") for name in ("finetune.py", "train_lora.py")]
    assert told[0].code == told[1].code == 2
    assert told[0].stderr == told[1].stderr
    assert "--lr is not a flag; write --learning-rate" in told[1].stderr
