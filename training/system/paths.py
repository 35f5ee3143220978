"""Where things are in the repository, and where a user's `~` is."""

from pathlib import Path

from training.errors import UserError

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "training"
CACHE = ROOT / ".cache"
MODELS = ROOT / "models"
SHARED_LOG = TRAINING / "finetune.log"
CHAT_TEMPLATES = TRAINING / "data" / "chat_templates"


def expanded(written: str) -> Path:
    """A path as it was written, its `~` being a home folder. UserError where there is none."""
    try:
        return Path(written).expanduser()
    except RuntimeError:
        raise UserError(f"{written}: there is no home folder for {Path(written).parts[0]}") from None
