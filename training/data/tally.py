"""What was met on the way through a file that prepare_data.py cleans, in the words that it tells."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from training.data import dataset, oddities, private
from training.data.record import SHOWN, BadRow, grouped
from training.errors import UserError
from training.system.wording import shorten


@dataclass
class Tally:
    """What was met on the way through a file. `bad` holds the bad rows."""

    rows: int = 0
    doubles: int = 0
    bad: list[BadRow] = field(default_factory=list)
    unused: set[str] = field(default_factory=set)
    read_as: dict[str, int] = field(default_factory=dict)
    private: dict[str, list[int]] = field(default_factory=dict)

    def reject(self, bad: BadRow) -> None:
        """Count a bad row. UserError when nothing can be read after it."""
        if bad.fatal:
            raise UserError(str(bad), "the file is broken; what follows this cannot be read")
        self.bad.append(bad)

    @property
    def bad_count(self) -> int:
        return len(self.bad)

    def lines(self, path: Path) -> Iterator[str]:
        """What to tell the user."""
        yield f"{path}: {self.rows:,} rows read, {self.bad_count:,} bad, {self.doubles:,} duplicates"
        yield from (f"  {line}" for line in self.named())
        for said, count in list(self.read_as.items())[: oddities.MOST_COLUMNS]:
            yield f"{oddities.count_rows(count)} {said}"
        for kind, lines in self.private.items():
            what = f"with {private.WHAT[kind]} (--on-private mask writes a mask in its place)"
            yield oddities.warning(path, lines[:SHOWN], len(lines), what)
        if self.unused:
            yield f"fields that are not taken over: {', '.join(sorted(map(shorten, self.unused)))}"

    def named(self) -> list[str]:
        """The bad rows by their reasons, up to the limit, and how many more there are."""
        return grouped(self.bad, dataset.NAMED)
