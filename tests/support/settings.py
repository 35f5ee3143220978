"""Real settings for tests, through the loader."""

from __future__ import annotations

import tempfile
from pathlib import Path

from training import settings
from training.settings import Override, Settings
from training.settings.table import TABLE


def a_settings(folder: Path | None = None, **values: object) -> Settings:
    """The defaults with some settings put over them: a_settings(MAX_STEPS=3, **{"LoRA.BIAS": "all"}).

    A name alone is enough where only one section has it. `folder`: where paths start, and the file lies. Files that
    the settings name need not be there.
    """
    overrides = []
    for name, value in values.items():
        (key,) = [key for key in TABLE if name in (key, key.split(".")[1])]
        section, setting = key.split(".")
        text = "" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
        overrides.append(Override(section, setting, text, "a test"))
    with tempfile.TemporaryDirectory() as empty:
        config = Path(folder or empty, "config.ini")
        if not config.exists():
            config.write_text("[Model]\n")
        return settings.load(config, overrides, check_files=False)
