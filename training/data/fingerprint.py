"""A name for the result of tokenising, by which it is found again in the cache."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from typing import TYPE_CHECKING

from training.data.chat_template import ChatTemplate

if TYPE_CHECKING:
    import datasets
    import pyarrow as pa
    from transformers import PreTrainedTokenizerBase

VERSION = 7  # of the encoding; raise it when the same rows would give other tokens, or other columns
BATCH = 500  # rows whose content is taken in at once
Options = tuple[int, str, str]  # MAX_SEQ_LENGTH, TRAIN_TURNS, TRAIN_ON


def fingerprint(
    data: datasets.Dataset, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, options: Options
) -> str:
    """A name for the result of tokenising, from all that goes into it. Rows count by content, not by file name or time."""
    digest = hashlib.sha256()
    backend = getattr(tokenizer, "backend_tokenizer", None)
    words = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    about = {name: value for name, value in asdict(template).items() if name not in ("special", "source", "today")}
    if "strftime_now" in template.jinja:
        about["today"] = str(template.today)
    digest.update(json.dumps([VERSION, about, sorted(template.special.items()), list(options)]).encode())
    digest.update(words.encode("utf-8", "surrogatepass"))
    for batch in data.with_format("arrow").iter(batch_size=BATCH):
        _digest_rows(digest, batch)
    return digest.hexdigest()[:24]


def _digest_rows(digest: hashlib._Hash, batch: pa.Table) -> None:
    """Take in the rows' content.

    Arrow writes it out: that is quicker than rows in Python, and does not depend on how they lie in a file.
    """
    import pyarrow as pa

    plain = batch.combine_chunks().replace_schema_metadata(None)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, plain.schema) as writer:
        writer.write_table(plain)
    digest.update(sink.getvalue())
