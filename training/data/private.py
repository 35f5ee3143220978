"""Private things in rows: addresses, numbers of phones, accounts, cards and persons, keys. Found, masked or refused.

Numbers count where their check digits are right, so that the number of an order is none. Standard library only, as rows
are read by any Python; names of people are not looked for, since no list has them.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from training.data import documents
from training.data.turns import Turn
from training.system import files, privacy

WHAT = {
    "key": "a key or token",
    "e-mail": "an e-mail address",
    "iban": "an IBAN",
    "id": "an identity number",
    "card": "a card number",
    "phone": "a phone number",
}
# The files of a folder that are read: documents, and exports of chat programs. What is written are .jsonl files.
READ = (*documents.ENDINGS, ".json", ".csv")
# What is reserved for examples (RFC 2606) is nobody's.
EMAIL = re.compile(
    r"(?<![A-Za-z0-9_.%+-])[A-Za-z0-9_.%+-]{1,64}@(?!(?:[\w-]+\.)*(?:example(?:\.(?:com|net|org))?|test|invalid|localhost)\b)"
    r"[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63}){0,6}\.[A-Za-z]{2,24}(?![\w-])"
)
# A number in groups as people write it: of so many digits, with one blank, dash or dot between two of them at most.
DIGITS = re.compile(r"\d(?:[ .-]?\d){6,}")
IBAN_BEGINS = re.compile(r"(?<![A-Za-z0-9])[A-Z]{2}\d{2}(?= ?[A-Z0-9])")
CARD = re.compile(r"(?<![\d.,-])(?:\d[ -]?){12,18}\d(?![\d-])")
CHINESE_ID = re.compile(
    r"(?<!\d)[1-9]\d{5}(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
TAIWANESE_ID = re.compile(r"(?<![A-Za-z0-9])[A-Z][1289]\d{8}(?![\dA-Za-z])")
PHONE = re.compile(
    # +49 171 1234567, also 0049; Chinese and Taiwanese mobiles; (555) 010-0199; 0171 1234567
    r"(?<![A-Za-z0-9_+.])(?<!\d[ -])(?:(?:\+|00)[1-9]\d{0,2}[ .()/-]{0,2}\(?\d{1,5}\)?(?:[ ./-]?\d{2,5}){1,4}"
    r"|1[3-9]\d[ -]?\d{4}[ -]?\d{4}|09\d{2}[ -]?\d{3}[ -]?\d{3}"
    r"|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4}|0\d{2,4}[ /-]\d{5,8})(?![A-Za-z0-9_-]|\.\d)"
)
# The lengths of the countries' IBANs.
LENGTHS = {
    part[:2]: int(part[2:])
    for part in [
        "AD24",
        "AE23",
        "AL28",
        "AT20",
        "AZ28",
        "BA20",
        "BE16",
        "BG22",
        "BH22",
        "BI27",
        "BR29",
        "BY28",
        "CH21",
        "CR22",
        "CY28",
        "CZ24",
        "DE22",
        "DJ27",
        "DK18",
        "DO28",
        "EE20",
        "EG29",
        "ES24",
        "FI18",
        "FK18",
        "FO18",
        "FR27",
        "GB22",
        "GE22",
        "GI23",
        "GL18",
        "GR27",
        "GT28",
        "HN28",
        "HR21",
        "HU28",
        "IE22",
        "IL23",
        "IQ23",
        "IS26",
        "IT27",
        "JO30",
        "KW30",
        "KZ20",
        "LB28",
        "LC32",
        "LI21",
        "LT20",
        "LU20",
        "LV21",
        "LY25",
        "MC27",
        "MD24",
        "ME22",
        "MK19",
        "MN20",
        "MR27",
        "MT31",
        "MU30",
        "NI28",
        "NL18",
        "NO15",
        "OM23",
        "PK24",
        "PL28",
        "PS29",
        "PT25",
        "QA29",
        "RO24",
        "RS22",
        "RU33",
        "SA24",
        "SC31",
        "SD18",
        "SE24",
        "SI19",
        "SK24",
        "SM27",
        "SO23",
        "ST25",
        "SV28",
        "TL23",
        "TN24",
        "TR26",
        "UA29",
        "VA22",
        "VG24",
        "XK20",
        "YE30",
    ]
}
# First digits of cards and how long those are: Visa, Mastercard, American Express, Discover, UnionPay, JCB, Diners Club.
CARDS = re.compile(
    r"4\d{12}(?:\d{3}){0,2}|(?:5[1-5]\d\d|222[1-9]|22[3-9]\d|2[3-6]\d\d|27[01]\d|2720)\d{12}|3[47]\d{13}"
    r"|6(?:011|5\d\d|4[4-9]\d)\d{12,15}|62\d{14,17}|35(?:2[89]|[3-8]\d)\d{12,15}|3(?:0[0-5]|[68]\d)\d{11}"
)
LETTERS = {letter: number for number, letter in enumerate("ABCDEFGHJKLMNPQRSTUVXYWZIO", 10)}


@dataclass(frozen=True)
class Found:
    """A private thing in a text: its kind (of WHAT), where it stands, and itself without the signs between its parts."""

    kind: str
    start: int
    end: int
    value: str


# A line break or a quotation mark as JSON writes it into a text, also in JSON within JSON: its letter is of no word behind it.
ESCAPED = re.compile(r'\\+[nrtbf"/]?')


def find(text: str) -> list[Found]:
    """The private things of a text, in order; none within another."""
    found: list[Found] = []
    begins: list[int] = []
    for kind, start, end in _looked_for(text):
        at = bisect.bisect(begins, start)
        if (not at or found[at - 1].end <= start) and (at == len(found) or end <= found[at].start):
            value = text[start:end]
            if kind not in ("key", "e-mail"):
                value = re.sub(r"[ ()./-]", "", value)
            begins.insert(at, start)
            found.insert(at, Found(kind, start, end, value if kind == "key" else value.casefold()))
    return found


def _looked_for(text: str) -> Iterator[tuple[str, int, int]]:
    """What is looked for, the surest first, each only in a text that can hold it: most hold nothing."""
    yield from (("key", *match.span()) for match in privacy.keys(text))
    if "\\" in text:
        text = ESCAPED.sub(lambda match: "\0" * len(match[0]), text)
    if "@" in text:
        yield from (("e-mail", *match.span()) for match in EMAIL.finditer(text))
    if not DIGITS.search(text):
        return
    yield from (("iban", start, end) for start, end in _ibans(text))
    for kind, pattern, fits in (
        ("id", CHINESE_ID, is_chinese_id),
        ("id", TAIWANESE_ID, is_taiwanese_id),
        ("card", CARD, is_card),
        ("phone", PHONE, is_phone),
    ):
        for match in pattern.finditer(text):
            if fits(re.sub(r"[ ()./-]", "", match[0])):
                yield kind, *match.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """Where IBANs stand: each as long as those of its country are, in groups or not."""
    for begin in IBAN_BEGINS.finditer(text):
        if length := LENGTHS.get(begin[0][:2]):
            match = _rest_of_iban(length - 4).match(text, begin.end())
            if match and is_iban(re.sub(" ", "", text[begin.start() : match.end()])):
                yield begin.start(), match.end()


@lru_cache
def _rest_of_iban(length: int) -> re.Pattern[str]:
    return re.compile(rf"(?: ?[A-Z0-9]){{{length}}}(?![A-Za-z0-9])")


def is_phone(number: str) -> bool:
    """Whether it has as many digits as numbers of phones have (E.164)."""
    return 8 <= sum(sign.isdigit() for sign in number) <= 15


def is_iban(number: str) -> bool:
    """Whether it has the length of its country, and as a number leaves 1 when it is divided by 97 (ISO 13616)."""
    if LENGTHS.get(number[:2]) != len(number):
        return False
    return int("".join(str(int(sign, 36)) for sign in number[4:] + number[:4])) % 97 == 1


def is_card(number: str) -> bool:
    """Whether it begins as a card of its length does, and fits its last digit (Luhn)."""
    if not CARDS.fullmatch(number):
        return False
    doubled = (int(sign) * (1 + at % 2) for at, sign in enumerate(reversed(number)))
    return sum(one // 10 + one % 10 for one in doubled) % 10 == 0


def is_chinese_id(number: str) -> bool:
    """Whether its last sign fits the others (GB 11643: ISO 7064, mod 11-2)."""
    rest = sum(int(sign) * pow(2, 17 - at, 11) for at, sign in enumerate(number[:17])) % 11
    return "10X98765432"[rest] == number[17].upper()


def is_taiwanese_id(number: str) -> bool:
    """Whether it is the number of a citizen or a resident: the sum of its weighed digits ends with 0."""
    if number[0] not in LETTERS:
        return False
    first = LETTERS[number[0]]
    weighed = first // 10 + first % 10 * 9
    weighed += sum(int(sign) * weight for sign, weight in zip(number[1:], (8, 7, 6, 5, 4, 3, 2, 1, 1), strict=True))
    return weighed % 10 == 0


def mask(kind: str, value: str, key: bytes) -> str:
    """What stands for a private thing: the same for the same thing in all rows, and no way back to it without the data."""
    return f"[{kind} {hashlib.blake2b(value.encode('utf-8', 'replace'), key=key[:64], digest_size=4).hexdigest()}]"


def masked(text: str, key: bytes) -> str:
    """The text with a mask for each private thing. One that is JSON stays JSON: the mask of a number is a text."""
    made, last = [], 0
    for one in find(text):
        made += [text[last : one.start], mask(one.kind, one.value, key)]
        last = one.end
    if not made:
        return text
    whole = "".join([*made, text[last:]])
    if text.lstrip().startswith(("{", "[")) and (held := _as_json(text)) is not None:
        wanted = masked_value(held, key)
        return whole if _as_json(whole) == wanted else json.dumps(wanted, ensure_ascii=False)
    return whole


def _as_json(text: str) -> object:
    try:
        found: object = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found


def masked_value(value: object, key: bytes) -> object:
    """A value as JSON has it, with masks in all its texts, names and numbers."""
    if isinstance(value, str):
        return masked(value, key)
    if isinstance(value, int) and not isinstance(value, bool):
        return written if (written := masked(str(value), key)) != str(value) else value
    if isinstance(value, list):
        return [masked_value(one, key) for one in value]
    if isinstance(value, dict):
        return {masked(name, key): masked_value(one, key) for name, one in value.items()}
    return value


def masked_json(text: str, key: bytes) -> str:
    """A JSON text with masks in all that it holds; "" stays that."""
    return json.dumps(masked_value(json.loads(text), key), ensure_ascii=False) if text else text


def texts_in(value: object) -> Iterator[str]:
    """All texts, names and whole numbers of a value as JSON has it."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, int) and not isinstance(value, bool):
        yield str(value)
    elif isinstance(value, list):
        for one in value:
            yield from texts_in(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from texts_in(one)


def kinds(texts: Iterable[str], written: Iterable[str] = ()) -> tuple[str, ...]:
    """The kinds of private things in texts, each once, in the order of WHAT. `written`: JSON texts, of what they hold."""
    every = [text for text in texts if text]
    every += [one for text in written if text for one in texts_in(json.loads(text))]
    # Most rows hold nothing, and all of a row is looked through in one go.
    whole = "\0".join(every)
    if not (privacy.may_hold_keys(whole) or "PRIVATE KEY" in whole or "@" in whole or DIGITS.search(whole)):
        return ()
    there = {one.kind for text in every for one in find(text)}
    return tuple(kind for kind in WHAT if kind in there)


def masked_turn(turn: Turn, key: bytes) -> Turn:
    """The turn with masks in all that it says."""
    return replace(
        turn, content=masked(turn.content, key), thoughts=masked(turn.thoughts, key), more=masked_json(turn.more, key)
    )


def key_of(source: Path) -> bytes:
    """What to make masks with for a file or folder: nobody has it who has not the data, and it is the same each time.

    Of a folder what its files hold that may be read; rows that were written into it are no part of it.
    """
    digest = hashlib.sha256()
    try:
        if source.is_file():
            return bytes.fromhex(files.sha256(source))
        for path in sorted(source.rglob("*")):
            below = path.relative_to(source)
            hidden = any(part.startswith(".") for part in below.parts)
            if path.suffix.lower() in READ and not hidden and path.is_file() and not path.is_symlink():
                digest.update(f"{below.as_posix()}\0{files.sha256(path)}\0".encode("utf-8", "surrogateescape"))
    except OSError:  # the reader says what is wrong with it
        pass
    return digest.digest()
