"""Where things are in the repository."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TRAINING = ROOT / "training"
CACHE = ROOT / ".cache"
MODELS = ROOT / "models"
CHAT_TEMPLATES = TRAINING / "data" / "chat_templates"
