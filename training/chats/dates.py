"""Date and time of a message as many locales write them (WhatsApp's phones, table programs), and which number is the day.

A date such as 03/04/2024 does not say that by itself. The file as a whole mostly does: a 13th month is none, and time runs
forward.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timezone

from training.errors import UserError
from training.system.wording import listed

NOT_A_DAY = 8  # times that time runs back, for one date that there is not
ORDERS = ("dmy", "mdy", "ymd")
MARKS = "\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff"
_BLANK = r"[ \u00a0\u202f]"
# Letters, dots and blanks before or behind a time: am, p. m., 下午, klo, à. Not so many that it could be a sentence.
_WORD = r"[^\W\d_][^\d\n\[\]:/\-]{0,11}?"
_BETWEEN = rf"{_BLANK}?[{MARKS}]*[./-][{MARKS}]*{_BLANK}?"
STAMP = (
    rf"(?P<a>\d{{1,4}})(?P<between>{_BETWEEN}|年)(?P<b>\d{{1,2}})(?:{_BETWEEN}|月)(?P<c>\d{{1,4}})"
    rf"日?[.,،]?,?[ \u00a0\u202f{MARKS}]*(?P<front>{_WORD})?{_BLANK}*"
    rf"(?P<hour>\d{{1,2}})(?P<colon>[:.])(?P<minute>\d{{2}})(?:[:.](?P<second>\d{{2}}))?"
    rf"(?:{_BLANK}?(?P<back>{_WORD}))?"
)
TEXT = re.compile(rf"\s*{STAMP}\s*")
MORNING = frozenset(
    ["am", "上午", "凌晨", "清晨", "早上", "오전", "午前", "ص", "sa", "fm", "vorm", "morgens", "nachts", "πμ", "पूर्वाह्न"]
)
AFTERNOON = frozenset(
    [
        "pm",
        "下午",
        "中午",
        "晚上",
        "傍晚",
        "오후",
        "午後",
        "م",
        "ch",
        "em",
        "nachm",
        "abends",
        "mittags",
        "μμ",
        "अपराह्न",
    ]
)


@dataclass(frozen=True)
class Stamp:
    """The numbers of a date as they stand, and the second of the day. spaced: with blanks between, as in 24. 3. 4."""

    date: tuple[int, int, int]
    second: int
    spaced: bool = False


def stamp(match: re.Match[str]) -> Stamp | None:
    """What a match of STAMP says; None where it is no time of a day."""
    hour, minute, second = int(match["hour"]), int(match["minute"]), int(match["second"] or 0)
    for word in (match["front"], match["back"]):
        bare = re.sub(r"[^\w]", "", word or "").casefold()
        if bare in MORNING and hour == 12:
            hour = 0
        elif bare in AFTERNOON and hour < 12:
            hour += 12
    if hour > 23 or minute > 59 or second > 59:
        return None
    return Stamp(
        (int(match["a"]), int(match["b"]), int(match["c"])),
        hour * 3600 + minute * 60 + second,
        " " in match["between"],
    )


def of_text(text: str) -> Stamp | None:
    """The date and time that a text is; None where it is none."""
    match = TEXT.fullmatch(text)
    return stamp(match) if match else None


def moment(at: Stamp, order: str) -> float | None:
    """Seconds since 1970 of that clock; None where there is no such day in that order."""
    numbers = dict(zip(order, at.date, strict=True))
    year = numbers["y"]
    if year < 100:
        year += 2000
    elif year > 2400:  # the Buddhist calendar of Thai phones
        year -= 543
    if not 2009 <= year <= 2100:  # WhatsApp began in 2009
        return None
    try:
        day = datetime(year, numbers["m"], numbers["d"], tzinfo=timezone.utc)
    except ValueError:
        return None
    return day.timestamp() + at.second


def orders(stamps: Sequence[Stamp]) -> list[str]:
    """The orders of day, month and year that the dates of a chat may have: one where they leave no doubt.

    Lines that only look like the head of a message are among them, so an order need not fit them all, but far better than
    the others.
    """
    # Of all locales only Korean ones begin with a year of two digits, and they write blanks.
    short = any(at.date[0] < 100 and not at.spaced for at in stamps)
    faults = {order: _faults(stamps, order) for order in ORDERS if not (short and order == "ymd")}
    least = min(faults.values())
    if least > max(NOT_A_DAY / 2, len(stamps)):
        return []
    fitting = [order for order in faults if faults[order] <= 4 * least]
    fitting = [order for order in fitting if not _stands_still(stamps, order)] or fitting
    different = {tuple(moment(at, order) for at in stamps) for order in fitting}
    # 05.05.2024 is the same day in either order.
    return fitting[:1] if len(different) == 1 else fitting


def order_of(stamps: Sequence[Stamp], place: str) -> str | None:
    """The one order of day, month and year that dates have; None where they are days of no calendar that is known.

    UserError where they can be read in several ways. `place`: of the first one.
    """
    fitting = orders(stamps)
    if len(fitting) > 1:
        one = "/".join(map(str, stamps[0].date))
        raise UserError(
            f"{place}: the date {one} can be read in {len(fitting)} ways, and no other date of the file decides: "
            f"--date-order {listed([f'{order} ({_spelt(order)})' for order in fitting]).replace(' and ', ' or ')}"
        )
    return fitting[0] if fitting else None


def moments(stamps: Sequence[Stamp], order: str, place: str, given: bool) -> list[float | None]:
    """The moments of dates in an order. UserError where somebody has `given` one that does not fit them."""
    times = [moment(at, order) for at in stamps]
    if given and sum(time is None for time in times) > len(times) / 4:
        raise UserError(f"{place}: --date-order {order} does not fit its dates")
    return times


def _spelt(order: str) -> str:
    return ", ".join({"d": "day", "m": "month", "y": "year"}[letter] for letter in order)


def _faults(stamps: Sequence[Stamp], order: str) -> int:
    """How much speaks against an order: dates that it does not know, and time that runs back by more than a day."""
    times = [moment(at, order) for at in stamps]
    known = [time for time in times if time is not None]
    back = sum(later < earlier - 86400 for earlier, later in zip(known, known[1:], strict=False))
    return NOT_A_DAY * (len(times) - len(known)) + back


def _stands_still(stamps: Sequence[Stamp], order: str) -> bool:
    """Whether in that order most dates are the same day of different months: it is a month that is read as the day."""
    dates = [at.date for at in stamps]
    turns = [(before, after) for before, after in zip(dates, dates[1:], strict=False) if before != after]
    day = order.index("d")
    same = sum(before[day] == after[day] for before, after in turns)
    return same >= 3 and same > len(turns) / 2
