"""config.ini and the command line become one frozen Settings, or all their problems at once."""

from training.settings.choice import Choice
from training.settings.loading import as_text, clamp, load, of_run
from training.settings.settings import Override, Settings

__all__ = ["Choice", "Override", "Settings", "as_text", "clamp", "load", "of_run"]
