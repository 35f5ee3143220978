"""Fine-tuning from Python: in a notebook or a program. `from training import ...` hands these names on (docs/python.md).

    from training import FineTuningConfig, run_fine_tuning, load_model_and_tokenizer, generate_text

    config = FineTuningConfig(model_name="Qwen/Qwen3-0.6B", output_dir="results", num_train_epochs=3)
    run = run_fine_tuning(data_path="rows.jsonl", config=config)
    model, tokenizer = load_model_and_tokenizer(run)
    print(generate_text(model, tokenizer, "Who are you?"))

A run made here is listed, resumed, exported and compared by ./run.sh, and the other way round. Errors are FinetuneError:
UserError, MachineError, RunError and Stopped, with exit_code, problems, safe and run.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.errors import FinetuneError, MachineError, RunError, Stopped, UserError
from training.library import FineTuningConfig, FineTuningRun, bar, child, given_rows
from training.library.config import config_of
from training.system import shell

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from training.library.answers import Prompt
    from training.library.given_rows import Rows
    from training.library.keywords import Keywords

__all__ = [
    "FineTuningConfig",
    "FineTuningRun",
    "FinetuneError",
    "Stopped",
    "MachineError",
    "RunError",
    "UserError",
    "generate_text",
    "load_model_and_tokenizer",
    "run_fine_tuning",
]


def run_fine_tuning(
    data_path: Rows | None = None,
    config: FineTuningConfig | None = None,
    prompt_template: str | None = None,
    train_test_split: float | None = None,
    on_event: Callable[[dict[str, Any]], None] | None = None,
    *,
    resume: str | os.PathLike[str] | None = None,
    progress: bool | None = None,
) -> FineTuningRun:
    """Train, export and check a model, as ./run.sh does, and give the run, which is also a path.

    data_path: a file, a list of dicts, or a datasets.Dataset; left out, the config's. prompt_template: text with
    {instruction}, {response} and other columns, in place of a chat template. train_test_split: the share of the rows that
    is kept back for validation; left out, the config's, which is 0.1 by default. on_event: is told every event of the run
    (docs/events.md); an exception from it ends the run after a checkpoint, and is raised. resume: a run to go on with, by
    its own settings and data. progress: False for no bar, True for one in any case.

    The run is a process of its own: nothing here exits, and signals, log sinks and stdout of this program stay as they
    are. KeyboardInterrupt (a notebook's stop) ends the run after a checkpoint, and raises Stopped; `resume` goes on.
    When this program dies, the run goes on; FineTuningRun.open(path) finds it again. Raises FinetuneError.
    """
    if on_event is not None and not callable(on_event):
        raise UserError(f"on_event= takes a function that is told each event, not {type(on_event).__name__}")
    if resume is not None:
        _alone(data_path, config, prompt_template, train_test_split)
        old = FineTuningRun.open(resume)
        return FineTuningRun(child.run(["--resume", old.path], bar.made(progress), on_event))
    config = config_of(config)
    changes: Keywords = {}
    if prompt_template is not None:
        changes["prompt_template"] = prompt_template
    if train_test_split is not None:
        changes["train_test_split"] = train_test_split
    if data_path is None:
        config = _checked(config.replace(**changes))
    else:
        with given_rows.held(data_path, config.settings.training.output_dir) as file:
            changes["data_path"] = file
            config = _checked(config.replace(**changes))
    with tempfile.TemporaryDirectory(prefix="finetune-") as folder:
        ini = config.write(Path(folder) / "FineTuningConfig.ini")
        return FineTuningRun(child.run(["--config", ini, "--fresh"], bar.made(progress), on_event))


def _checked(config: FineTuningConfig) -> FineTuningConfig:
    """The config, once all that would refuse it was looked at. UserError with everything that is wrong."""
    if not config.settings.written("Dataset.DATASET_FILE") and not config.settings.dataset.dataset_file.is_file():
        raise UserError("data_path= is missing: a file, a list of dicts, or a datasets.Dataset")
    if config.checked().hardware.machine_rank > 0:
        raise UserError(
            f"machine_rank=: only machine 0 has a run of its own; start the others with {shell.command('run.sh')}"
        )
    return config


def _alone(*others: object) -> None:
    if any(other is not None for other in others):
        raise UserError("resume= goes on with the run's own data and settings; leave the others out")


def load_model_and_tokenizer(
    model: FineTuningConfig | str | os.PathLike[str], device: str | None = None
) -> tuple[PreTrainedModel | PeftModel, PreTrainedTokenizerBase]:
    """Load a model for generate_text, or for anything else that transformers can do with it.

    model: what run_fine_tuning gave; a run's folder, its adapter/ or merged/; OUTPUT_DIR/final_model; another model's
    folder or its id on the Hub; or a FineTuningConfig whose model_name is one of these. device: cuda where there is one.
    Raises FinetuneError.
    """
    from training.library import answers

    return answers.load(model, device)


def generate_text(
    model: PreTrainedModel | PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt: Prompt,
    max_new_tokens: int = 512,
    temperature: float = 0.7,
    seed: int | None = None,
) -> str:
    """The model's answer to a prompt, which is put into the chat template that the model was trained with.

    prompt: a text, or messages of role and content. temperature: 0 takes the likeliest token each time. seed: the same
    answer each time. Raises UserError where the prompt is too long.
    """
    from training.library import answers

    return answers.answer(model, tokenizer, prompt, max_new_tokens, temperature, seed)
