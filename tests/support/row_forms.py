"""Files as people have them, and what comes of them: the cases of tests/data are written in these."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path

from training.data import BadRow, Row, Turn, rows
from training.data.reading import PLAIN, Reading
from training.data.record import grouped
from training.errors import UserError

Q, A = Turn("user", "Who?"), Turn("assistant", "Me.")
Q2, A2 = Turn("user", "Why?"), Turn("assistant", "So.")
ONE, TWO = {"instruction": "Who?", "output": "Me."}, {"instruction": "Why?", "output": "So."}
TALK = ({"role": "user", "content": "Who?"}, {"role": "assistant", "content": "Me."})
TALK2 = ({"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."})


@dataclass(frozen=True)
class Form:
    """What a file holds, under which name, how it is read, and what comes: the turns of each row (a text for plain ones), or
    of which the message must speak where it is refused."""

    content: object
    come: list[object] | str
    name: str = "a.jsonl"
    reading: Reading = PLAIN


def table(content: str | bytes, come: list[object] | str = [(Q, A)], name: str = "a.csv", **how: object) -> Form:  # noqa: B006
    return Form(content, come, name, Reading(**how))  # type: ignore[arg-type]


def talk(*messages: object, **fields: object) -> dict[str, object]:
    return {"messages": list(messages), **fields}


def holds(form: Form) -> list[Row | BadRow]:
    """Read the file that a form stands for, in the folder where we are, hold what comes to `come`, and give it."""
    content = form.content if isinstance(form.content, (str, bytes)) else json.dumps(form.content, ensure_ascii=False)
    Path(form.name).write_bytes(content.encode() if isinstance(content, str) else content)
    try:
        found = list(rows.read(Path(form.name), form.reading))
    except UserError as error:
        assert isinstance(form.come, str) and re.search(form.come, str(error), re.DOTALL), error
        return []
    bad = [row for row in found if isinstance(row, BadRow)]
    if isinstance(form.come, str):
        assert len(grouped(bad, 20)) == 1 and re.search(form.come, bad[0].reason), found
        return found
    assert not bad, bad
    assert [
        row.messages if row.messages is not None else row.text for row in found if isinstance(row, Row)
    ] == form.come
    return found
