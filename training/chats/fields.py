"""Values of somebody else's JSON, each by its kind: what is of another is as good as not there."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone

Fields = Mapping[str, object]
LAST_MOMENT = 1e11  # seconds since 1970: the year 5138
CLOCK = re.compile(
    r"(?P<year>\d{4})(?P<sign>[-/.])(?P<month>\d{1,2})(?P=sign)(?P<day>\d{1,2})"
    r"(?:(?:[Tt]|\s+)(?P<hour>\d{1,2}):(?P<minute>\d{1,2})(?::(?P<second>\d{1,2})(?:[.,](?P<part>\d+))?)?)?(?![\d:.,])",
    re.ASCII,
)


def text(value: object) -> str:
    """A text that can be written as UTF-8, without what no text holds; "" for anything else."""
    if not isinstance(value, str):
        return ""
    value = value.replace("\0", "")
    return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")


def fields(value: object) -> Fields:
    """An object; an empty one for anything else."""
    return value if isinstance(value, dict) else {}


def objects(value: object) -> Iterator[Fields]:
    """The objects of a list."""
    if isinstance(value, list):
        yield from (one for one in value if isinstance(one, dict))


def seconds(value: object) -> float | None:
    """A moment in seconds since 1970: a number (also as text, also in milliseconds), or a date as ISO 8601 writes it."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return None
    try:
        found = float(value)
    except OverflowError:
        return None
    except ValueError:
        return _by_calendar(str(value))
    if found >= LAST_MOMENT:
        found /= 1000
    return found if math.isfinite(found) and 0 <= found < LAST_MOMENT else None


def _by_calendar(value: str) -> float | None:
    written = value.strip()
    if written.endswith(("Z", "z")):
        written = f"{written[:-1]}+00:00"
    # A table program that saves a table again writes 2024/3/4 9:05. Python 3.10 reads fractions of three or six digits alone.
    if clock := CLOCK.match(written):
        day = f"{clock['year']}-{clock['month']:0>2}-{clock['day']:0>2}"
        time = f"{clock['hour'] or 0:0>2}:{clock['minute'] or 0:0>2}:{clock['second'] or 0:0>2}"
        written = f"{day}T{time}.{(clock['part'] or '')[:6]:0<6}{written[clock.end() :].strip()}"
    try:
        found = datetime.fromisoformat(written)
    except ValueError:
        return None
    # A clock without a zone is as good as any: only what lies between two messages counts.
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()
