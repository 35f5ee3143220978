"""The one place where a model's tokenizer is loaded: whoever checks or converts reads text as training does."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from training.errors import FinetuneError, UserError
from training.system import foreign_code
from training.system.wording import first_line

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder. Code that comes with it runs where TRUST_REMOTE_CODE allows that.

    UserError, with the folder and the library's reason, where its files are missing or damaged.
    """
    from transformers import AutoTokenizer

    try:
        found: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=foreign_code.trusted()
        )
    except FinetuneError:
        raise
    except BaseException as error:
        # transformers and tokenizers raise nothing narrower; a panic of the latter's Rust is no Exception.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = first_line(error)
        raise UserError(f"{folder}: its tokenizer cannot be read: {reason}") from error
    return found
