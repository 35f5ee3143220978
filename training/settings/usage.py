"""The flags of the command line, and what --help prints of them and of all settings."""

from __future__ import annotations

from collections.abc import Sequence

from training.settings import rules
from training.settings.table import EVERY, EVERY_SECTION

# Flags that set something: the setting and what to write for its value. --epochs sets MAX_STEPS to 0 as well.
SETTING_FLAGS = {
    "--data": "Dataset.DATASET_FILE",
    "--columns": "Dataset.COLUMNS",
    "--output": "Training.OUTPUT_DIR",
    "--model": "Model.BASE_MODEL_NAME",
    "--epochs": "Training.NUM_TRAIN_EPOCHS",
    "--batch-size": "Training.PER_DEVICE_TRAIN_BATCH_SIZE",
    "--learning-rate": "Training.LEARNING_RATE",
    "--max-length": "Model.MAX_SEQ_LENGTH",
    "--lora-r": "LoRA.R",
    "--name": "Model.NEW_MODEL_NAME",
}
# Flags of --serve. They are no settings of a run.
SERVICE_FLAGS = {"--host": "Service.HOST", "--port": "Service.PORT"}
POSITIONS = (
    ("DATA", "Dataset.DATASET_FILE"),
    ("OUTPUT_DIR", "Training.OUTPUT_DIR"),
    ("BASE_MODEL", "Model.BASE_MODEL_NAME"),
    ("EPOCHS", "Training.NUM_TRAIN_EPOCHS"),
)
# Flags that say what to do, instead of a run: whether a RUN, or several, may follow, and the help.
COMMANDS = {
    "--check": ("", "check settings, data, machine and disk; print the plan; train nothing"),
    "--prove": (
        "",
        "five steps by each engine on the same batches: do they agree, which is the fastest, does memory do",
    ),
    "--resume": ("[RUN]", "go on with an interrupted run"),
    "--status": ("[RUN]", "what state a run is in"),
    "--follow": ("[RUN]", "show the log of a run as it grows"),
    "--stop": ("[RUN]", "end a run after a full checkpoint"),
    "--history": ("", "all runs under OUTPUT_DIR"),
    "--chat": ("[RUN]", "talk to the GGUF file of a run in this terminal"),
    "--compare": ("RUN RUN...", "one page of several runs; prints its path"),
    "--whois": ("MODEL", "what a GGUF file, or a model in Ollama, says of its training"),
    "--serve": ("", "a page and an HTTP service on this machine (--port, --host); Ctrl-C ends it, and no run"),
}
SWITCHES = {
    "--fresh": "start a new run, and do not mention an interrupted one",
    "--detach": "run in the background, tied to no terminal",
    "--events": "one JSON object a line on standard output",
    "--json": "print --status or --history as JSON",
}
TRAINS = ("run", "resume")  # the commands that train
SWITCH_NEEDS = {
    "fresh": ("run",),
    "detach": TRAINS,
    "events": (*TRAINS, "follow"),
    "json": ("status", "history"),
}
NOT_GIVEN = ("None", "null", "<nil>")  # what programs write for a value they do not have


def help_text() -> str:
    """What --help prints: all arguments, and every setting from the table."""
    lines = [
        "usage: ./run.sh [DATA [OUTPUT_DIR [BASE_MODEL [EPOCHS]]]] [FLAGS]",
        "",
        "Fine-tune a chat model as config.ini says, and make a GGUF file and a Modelfile for Ollama.",
        'DATA OUTPUT_DIR BASE_MODEL EPOCHS take the place of settings; "" leaves one as it is.',
        "",
        "Settings for this run (a flag beats an argument, that beats the file, that beats the default):",
        *_rows(
            [
                (f"{flag} VALUE", f"[{EVERY[key].section}] {EVERY[key].key}")
                for flag, key in {**SETTING_FLAGS, **SERVICE_FLAGS}.items()
            ]
        ),
        *_rows([("--set Section.KEY=VALUE", "any setting; may be repeated"), ("--config FILE", "the settings file")]),
        "EPOCHS and --epochs set MAX_STEPS to 0 as well. Paths start in the folder you are in.",
        "Every setting is a flag by its own name, too (--save-steps 50), and some by those of guides: --base-model,",
        "--train-data, --dataset-path, --val-data, --num-epochs, --use-quantization, --dataset-format, --use-wandb,",
        "--wandb-project, --wandb-run-name, --fp16, --bf16. Underscores do for dashes.",
        "",
        "Instead of a run:",
        *_rows([(f"{flag} {takes}".strip(), text) for flag, (takes, text) in COMMANDS.items()]),
        "",
        "Further:",
        *_rows([*SWITCHES.items(), ("--help", "this text")]),
        "",
        "RUN is a run's folder, or its name under OUTPUT_DIR; left out, the latest one.",
        "Exit code: 0 done, 1 failed while running, 2 wrong settings, arguments or data, 3 machine not ready,",
        "4 ended at once by a second signal, 130 or 143 stopped; ./run.sh --resume goes on with what was saved.",
        "",
        "All settings, with their defaults:",
    ]
    for section in EVERY_SECTION:
        lines.append(f"[{section}]")
        items = [item for item in EVERY.values() if item.section == section]
        lines += _rows([(f"{item.key} = {rules.write(item.rule.default)}".rstrip(), item.rule.help) for item in items])
    return "\n".join(lines) + "\n"


def _rows(rows: Sequence[tuple[str, str]], width: int = 24) -> list[str]:
    return [
        f"  {left:<{width}} {right}" if len(left) <= width else f"  {left}\n  {'':<{width}} {right}"
        for left, right in rows
    ]
