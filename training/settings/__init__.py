"""config.ini and the command line become one frozen Settings, or all their problems at once."""

from training.settings.choice import Choice
from training.settings.loading import clamp, load, of_run
from training.settings.settings import Override, Settings

__all__ = ["Choice", "Override", "Settings", "clamp", "load", "of_run"]
