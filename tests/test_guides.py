"""The commands of five public guides, as they are typed there (tests/support/guides.py): none is refused, and they do it."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.guides import BLOCKS, Block
from tests.support.paths import ROOT
from tests.support.tiny import write_tiny_config
from training import convert_to_gguf, evaluate_model, prepare_data, settings
from training.settings import command_line

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


def ran(folder: Path, script: str, *argv: str | Path) -> subprocess.CompletedProcess[str]:
    """Run a program in the folder that its user stands in."""
    started = [ROOT / script] if script.endswith(".sh") else [sys.executable, ROOT / "training" / script]
    return subprocess.run(
        [str(word) for word in (*started, *argv)],
        cwd=folder, stdin=subprocess.DEVNULL, capture_output=True, text=True, encoding="utf-8", timeout=900,
    )  # fmt: skip


def block(program: str, part: str = "") -> Block:
    return next(one for one in BLOCKS if one.program == program and part in one.typed)


@pytest.mark.tiny
def test_the_course_is_done_from_its_first_line_to_its_last(tmp_path, tiny_model):
    """Sample rows, cleaned and split; trained; evaluated by the adapter's name; converted by the merged model's."""
    known = names(tmp_path, tiny_model)
    for program, part in (("create_sample_data.py", ""), ("prepare_data.py", "")):
        ended = ran(tmp_path, program, *typed(block(program, part), **known))
        assert ended.returncode == 0, ended.stderr
    out = Path(known["OUT"])
    assert {path.name for path in out.glob("train_*.jsonl")} == {
        "train_train.jsonl", "train_validation.jsonl", "train_test.jsonl",
    }  # fmt: skip
    known["DATA"], known["VAL"] = out / "train_train.jsonl", out / "train_validation.jsonl"

    ended = ran(tmp_path, "train_lora.py", *typed(block("train_lora.py", "--use-quantization"), **known))
    assert ended.returncode == 0, ended.stderr
    run = Path(ended.stdout.strip())
    assert (out / "lora_adapter").resolve() == run / "adapter" and (out / "merged_model").resolve() == run / "merged"
    used = json.loads((run / "report.json").read_text("utf-8"))["settings"]
    assert (used["LoRA"]["R"], used["Training"]["NUM_TRAIN_EPOCHS"]) == (8, 3)

    ended = ran(tmp_path, "evaluate_model.py", *typed(block("evaluate_model.py", "--test-data"), **known))
    assert ended.returncode == 0, ended.stderr
    rows = list(csv.DictReader((tmp_path / "results.csv").open(encoding="utf-8", newline="")))
    assert len(rows) == 16 and "tuned_answer" in rows[0]

    ended = ran(tmp_path, "convert_to_gguf.py", *typed(block("convert_to_gguf.py", "Q8_0"), **known))
    assert ended.returncode == 0, ended.stderr
    assert all(Path(line).is_file() for line in ended.stdout.splitlines())


@pytest.mark.tiny
def test_a_service_s_underscores_train_and_its_history_has_progress(tmp_path, tiny_model):
    known = names(tmp_path, tiny_model)
    ended = ran(tmp_path, "train_lora.py", *typed(block("train_lora.py", "--num_epochs"), **known))
    assert ended.returncode == 0, ended.stderr
    listed = ran(tmp_path, "finetune.py", "--history", "--json", "--output", known["OUT"])
    (row,) = json.loads(listed.stdout)
    assert (row["run"], row["state"], row["progress"]) == (Path(ended.stdout.strip()).name, "completed", 100)


@pytest.mark.tiny
def test_the_next_line_of_the_first_guide_finds_its_modelfile(undisturbed, tmp_path):
    """`./export_ollama.sh .../merged my-name`, then `ollama create my-name -f Modelfile.my-name` in the same folder."""
    run = shutil.copytree(undisturbed, tmp_path / undisturbed.name)
    ended = ran(tmp_path, "export_ollama.sh", "--modelfile-only", run / "merged", "my-name")
    assert ended.returncode == 0, ended.stderr
    lines = (tmp_path / "Modelfile.my-name").read_text("utf-8").splitlines()
    assert [Path(line.removeprefix("FROM ")).is_file() for line in lines if line.startswith("FROM ")] == [True]


@pytest.mark.slow
def test_the_program_by_its_other_name_answers_the_same(tmp_path):
    config = write_tiny_config(tmp_path, tmp_path / "no-model")
    told = [ran(tmp_path, name, "--config", config, "--lr", "1") for name in ("finetune.py", "train_lora.py")]
    assert told[0].returncode == told[1].returncode == 2
    assert told[0].stderr == told[1].stderr
    assert "--lr is not a flag; write --learning-rate" in told[1].stderr
