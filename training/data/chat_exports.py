"""Exports of chat programs as rows: those that say who answers are read as any file; of the others prepare_data makes rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training import chats
from training.chats import NAMES, Cutting, Picture, Wanted
from training.chats.assistants import READERS, program_of
from training.chats.conversations import Unused, conversations
from training.chats.messages import Left
from training.chats.reading import ROLES_KNOWN, of_head
from training.data.record import BadRow, Record
from training.errors import UserError
from training.system import paths, shell


@dataclass(kw_only=True)
class Export:
    """An export while its rows are read. `picture` is whole when all of them were."""

    path: Path
    kind: str
    wanted: Wanted
    picture: Picture | None = field(default=None, init=False)

    def records(self) -> Iterator[Record | BadRow]:
        """A row for each conversation, with the line that it begins on, or its number where lines say nothing."""
        found, self.picture = chats.read(self.path, self.kind, self.wanted)
        for number, one in enumerate(found, 1):
            line = one.line if self.kind in ("whatsapp", "wechat-csv") and self.path.is_file() else -number
            yield Record(line, {"messages": one.messages()})


def refuse(path: Path, head: bytes) -> None:
    """UserError where a file that begins like this is an export that prepare_data.py makes rows of: who answers there, somebody must say."""
    kind = of_head(head)
    if kind and kind not in ROLES_KNOWN:
        words = ("--input", path, "--my-name", "YOUR NAME", "--format-type", "chat", "--output-dir", "prepared")
        makes = shell.command(".venv/bin/python", paths.TRAINING / "prepare_data.py", *words, "--output-name", "my")
        raise UserError(
            f"{path}: is an export of {NAMES[kind]}, not a file of rows; prepare_data.py makes rows of it, in which is learned "
            f"what YOUR NAME wrote: {makes}"
        )


def of_assistants(found: Iterator[Record | BadRow], path: Path) -> Iterator[Record | BadRow]:
    """The rows of a list, those of them that are conversations of ChatGPT, Claude or Open WebUI turned into such.

    One that nobody answered is no bad row: every export holds some. They are counted. UserError where that is all of them.
    """
    held: Record | None = None
    empty, others = 0, 0
    for record in found:
        kind = "" if isinstance(record, BadRow) else program_of(record.fields)
        if isinstance(record, BadRow) or not kind:
            others += 1
            yield record
            continue
        chat = READERS[kind][1](record.fields, 0, Left())
        made = next(conversations(chat, frozenset(), Cutting(most_turns=0), Unused()), None)
        if made is None:
            empty += 1
            continue
        if held is not None:
            yield held
        said = f"that are conversations of {NAMES[kind]}, of which the branch is read that was shown last"
        held = Record(record.line, {"messages": made.messages()}, (*record.read_as, said))
    if held is None and empty and not others:
        raise UserError(
            f"{path}: is an export of conversations of which nothing can be learned: in none of its {empty:,} stands an answer "
            "to what the export holds"
        )
    if held is not None:
        said = (
            f"that ends an export of which {empty:,} conversation{'s' * (empty != 1)} without an answer were left out"
        )
        yield Record(held.line, held.fields, (*held.read_as, said)) if empty else held
