"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "training"
CACHE = ROOT / ".cache"
MODELS = ROOT / "models"
SHARED_LOG = TRAINING / "finetune.log"
CHAT_TEMPLATES = TRAINING / "data" / "chat_templates"
