"""The one place where a model's tokenizer is loaded: whoever checks or converts reads text as training does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.system import foreign_code

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Code that comes with it runs where TRUST_REMOTE_CODE allows that.

    Raises whatever transformers and the tokenizers library raise for files that are missing or damaged.
    """
    from transformers import AutoTokenizer

    found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        folder, local_files_only=True, trust_remote_code=foreign_code.trusted()
    )
    return found
