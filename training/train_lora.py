"""training/finetune.py under the name that guides know it by:  python training/train_lora.py [arguments: ./run.sh --help]"""

from __future__ import annotations

import runpy
from pathlib import Path

if __name__ == "__main__":
    runpy.run_path(str(Path(__file__).with_name("finetune.py")), run_name="__main__")
