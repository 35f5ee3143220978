"""The adapter on the disk."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from training import runs
from training.base_model.lora_adapter import CONFIG, WEIGHTS
from training.errors import RunError
from training.runs import checkpoint
from training.system import files, io_errors

if TYPE_CHECKING:
    from peft import PeftModel

    from training.settings import Settings


def load_adapter(model: PeftModel, path: Path) -> None:
    """Put a saved adapter's weights into a model that was made with the same settings."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    set_peft_model_state_dict(model, load_file(path / WEIGHTS))


def load_trained(model: PeftModel, path: Path, settings: Settings) -> None:
    """Put a finished adapter into a model, to be measured as it would have been right after its training.

    On a CPU that is in the precision of the training, which accelerate gave to the model; elsewhere it is the model's own.
    """
    from accelerate import Accelerator

    load_adapter(model, path)
    if settings.hardware.device == "cpu":
        precision = settings.hardware.precision
        accelerator = Accelerator(mixed_precision="no" if precision == "fp32" else precision, cpu=True)
        accelerator.prepare_model(model, device_placement=False, evaluation_mode=True)


def save_adapter(model: PeftModel, path: Path) -> None:
    """Write the adapter as PEFT does (safetensors), whole or not at all."""
    try:
        with files.whole_folder(path) as partial:
            model.save_pretrained(str(partial), safe_serialization=True)
            # PEFT's model card, a form nobody filled in.
            (partial / "README.md").unlink(missing_ok=True)
            _sort_modules(partial / CONFIG)
    except OSError as error:
        raise disk_error(error, path.parent / runs.CHECKPOINTS, model) from error


def _sort_modules(config: Path) -> None:
    """PEFT keeps TARGET_MODULES as a set, whose order is another in every process: equal runs shall have equal files."""
    values = json.loads(config.read_text(encoding="utf-8"))
    if isinstance(values.get("target_modules"), list):
        values["target_modules"].sort()
    config.write_text(json.dumps(values, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def disk_error(error: Exception, folder: Path, model: PeftModel) -> RunError:
    """A write that failed, with the room that a checkpoint needs, what there is of it, and what is safe."""
    free = shutil.disk_usage(io_errors.nearest(folder)).free
    full = io_errors.may_be_full(error) and not io_errors.out_of_inodes(folder)
    trained = sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)
    needed = 3 * trained  # with the two moments of Adam
    room = f"a checkpoint under {folder} needs about {needed:,} bytes, {free:,} are free"
    what = f"the disk is full: {room}; make room first" if full else io_errors.told(error, folder)
    return RunError("checkpoint", what, checkpoint.where(folder))
