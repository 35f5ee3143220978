"""Where chat templates of many models are, as files."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

LLAMA_CPP = Path(sys.prefix) / "llama.cpp/models/templates"  # put there by setup.sh
TRL = Path(importlib.util.find_spec("trl").origin).parent / "chat_templates"
BOS, EOS = "<|beginning|>", "<|ending|>"  # to render them with
