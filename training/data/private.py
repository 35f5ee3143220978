"""Private things in rows: addresses, numbers of phones, accounts, cards and persons, keys. Found, masked or refused.

Numbers count where their check digits are right, so that the number of an order is none. Standard library only, as rows
are read by any Python; names of people are not looked for, since no list has them.
"""

from __future__ import annotations

import bisect
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Sequence
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
# An address as people write it for others to read, and no program: ann (at) company [dot] de
SPELT = re.compile(
    r"(?<![A-Za-z0-9_.%+-])[A-Za-z0-9_.%+-]{1,64} ?[\[({] ?at ?[\])}] ?(?!example\b)[A-Za-z0-9-]{1,63}"
    r"(?:(?:\.| ?[\[({] ?(?:dot|punkt) ?[\])}] ?)[A-Za-z0-9-]{1,63}){1,6}(?![\w-])",
    re.IGNORECASE,
)
AT = re.compile(r"[\[({] ?at ?[\])}]", re.IGNORECASE)
# What stands for an ASCII sign, one for one: blanks and dashes at which no line ends, and those of full width, as Chinese
# and Japanese keyboards have them.
PLAIN = {
    **dict.fromkeys([0xA0, 0x2007, 0x2009, 0x202F, 0x3000], " "),
    **dict.fromkeys([*range(0x2010, 0x2016), 0x2212, 0x00AD], "-"),
    **{code: chr(code - 0xFEE0) for code in range(0xFF01, 0xFF5F)},
}
OTHER_SIGNS = re.compile(f"[{''.join(re.escape(chr(code)) for code in PLAIN)}]")
# A number in groups as people write it: of so many digits, with a few signs between two of them at most.
DIGITS = re.compile(r"\d(?:[^\w\0]{0,3}\d){6,}")
LEAST_DIGITS = 7  # of an IBAN, whichever country's
_GAP = r"(?:\r?\n|[ .-])?"
IBAN_BEGINS = re.compile(
    r"(?:(?<![A-Za-z0-9])|(?<=IBAN)|(?<=iban))(?:[A-Z]{2} ?|[A-Za-z]{2})\d{2}(?=(?:\r?\n|[ .-])?[A-Za-z0-9])"
)
CARD = re.compile(r"(?<![\d.,-])(?:\d(?:[ -]{0,2}|\.)){12,18}\d(?![\d-])")
CHINESE_ID = re.compile(
    r"(?<!\d)[1-9]\d{5}[ -]?(?:18|19|20)\d{2}(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])[ -]?\d{3}[\dXx](?![\dA-Za-z])"
)
TAIWANESE_ID = re.compile(r"(?<![A-Za-z0-9])(?:[A-Z][ -]?|[a-z])[1289]\d(?:[ -]?\d){7}(?![\dA-Za-z])")
PHONE = re.compile(
    r"(?<![A-Za-z0-9_+.])(?<!\d[ -])(?:"
    # +49 171 1234567, +49.171.1234567, +49 (0) 171 / 1234567, also 0049
    r"(?:\+|00)[1-9]\d{0,2}[ ./-]{0,2}(?:\(0\)[ .-]?)?\(?\d{1,5}\)?(?: [/-] |[ ./-]?)\d{2,5}(?:[ ./-]?\d{2,5}){0,3}"
    # Chinese and Taiwanese mobiles; (555) 010-0199, 555-010-0199, 555.010.0199
    r"|1[3-9]\d[ -]?\d{4}[ -]?\d{4}|09\d{2}[ -]?\d{3}[ -]?\d{3}|\(\d{3}\) ?\d{3}[ .-]\d{4}|\d{3}-\d{3}-\d{4}|\d{3}\.\d{3}\.\d{4}"
    # 0171 1234567, 030 - 1234567, 0171.1234567; (030) 12345678; mobiles of Germany, Britain and France in one
    r"|0\d{2,4}(?: ?[/-] ?|[ ])\d{5,8}|0\d{2,4}\.\d{7,8}|\(0\d{1,4}\)[ /-]{0,3}\d{2,8}(?:[ .-]\d{2,5}){0,3}|0(?:1[5-7]|[67])\d{8,9}"
    # 01 23 45 67 89, 01.23.45.67.89
    r"|0[1-9](?P<sign>[ .-])\d\d(?:(?P=sign)\d\d){3}(?![ .-]\d)"
    r")(?![A-Za-z0-9_-]|\.\d)"
)
# 020 7946 0958, 0171-123-4567, 0171 123 45 67
GROUPED = re.compile(
    r"(?<![A-Za-z0-9_+.])(?<!\d[ -])0\d{1,4}(?P<gap>[ -])\d{2,4}(?:(?P=gap)\d{2,4}){1,3}(?![A-Za-z0-9_-]|[ .-]\d)"
)
# A key that was cut by a line break: what stands alone on the next line, with a digit in it, belongs to it.
_REST_OF_KEY = r"(?:\r?\n[ \t]*(?=[A-Za-z0-9_-]*\d)[A-Za-z0-9_-]{8,}(?=[\s,;.!?)\"'，。；）]|\Z))"
WRAPPED = re.compile(
    r"(?<![A-Za-z0-9])(?:(?:sk-|hf_|gh[pousr]_|github_pat_|glpat-|xox[abeprs]-|AKIA|ASIA|AIza)[A-Za-z0-9_-]{4,}"
    rf"{_REST_OF_KEY}+|eyJ[A-Za-z0-9_-]{{8,1000}}(?:\r?\n?\.\r?\n?[A-Za-z0-9_-]{{4,1000}}){{1,2}}{_REST_OF_KEY}*)"
)
# The lengths of the countries' IBANs.
_LENGTHS = (
    "AD24 AE23 AL28 AT20 AZ28 BA20 BE16 BG22 BH22 BI27 BR29 BY28 CH21 CR22 CY28 CZ24 DE22 DJ27 DK18 DO28 "
    "EE20 EG29 ES24 FI18 FK18 FO18 FR27 GB22 GE22 GI23 GL18 GR27 GT28 HN28 HR21 HU28 IE22 IL23 IQ23 IS26 "
    "IT27 JO30 KW30 KZ20 LB28 LC32 LI21 LT20 LU20 LV21 LY25 MC27 MD24 ME22 MK19 MN20 MR27 MT31 MU30 NI28 "
    "NL18 NO15 OM23 PK24 PL28 PS29 PT25 QA29 RO24 RS22 RU33 SA24 SC31 SD18 SE24 SI19 SK24 SM27 SO23 ST25 "
    "SV28 TL23 TN24 TR26 UA29 VA22 VG24 XK20 YE30"
)
LENGTHS = {part[:2]: int(part[2:]) for part in _LENGTHS.split()}
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
    # As long as the text is, so that places stay what they are.
    plain = text.translate(PLAIN) if OTHER_SIGNS.search(text) else text
    for kind, start, end in _looked_for(plain):
        at = bisect.bisect(begins, start)
        if (not at or found[at - 1].end <= start) and (at == len(found) or end <= found[at].start):
            begins.insert(at, start)
            found.insert(at, Found(kind, start, end, _value(kind, plain[start:end])))
    return found


def _value(kind: str, written: str) -> str:
    """A private thing in the one way that stands for all in which it is written."""
    if kind == "key":
        return "".join(written.split()) if "PRIVATE" not in written else written
    if kind == "e-mail":
        written = re.sub(r" ?[\[({] ?at ?[\])}] ?", "@", written, flags=re.IGNORECASE)
        return re.sub(r" ?[\[({] ?(?:dot|punkt) ?[\])}] ?", ".", written, flags=re.IGNORECASE).casefold()
    if kind == "phone" and written.startswith(("+", "00")):
        written = re.sub(r"\A00", "+", written).replace("(0)", "")
    return re.sub(r"[\s()./-]", "", written).casefold()


def _looked_for(text: str) -> Iterator[tuple[str, int, int]]:
    """What is looked for, the surest first, each only in a text that can hold it: most hold nothing."""
    if "\n" in text and privacy.may_hold_keys(text):
        yield from (("key", *match.span()) for match in WRAPPED.finditer(text))
    yield from (("key", *match.span()) for match in privacy.keys(text))
    if "\\" in text:
        text = ESCAPED.sub(lambda match: "\0" * len(match[0]), text)
    if "@" in text:
        yield from (("e-mail", *match.span()) for match in EMAIL.finditer(text))
    if AT.search(text):
        yield from (("e-mail", *match.span()) for match in SPELT.finditer(text))
    if not DIGITS.search(text):
        return
    yield from (("iban", start, end) for start, end in _ibans(text))
    for kind, pattern, fits in (
        ("id", CHINESE_ID, is_chinese_id),
        ("id", TAIWANESE_ID, is_taiwanese_id),
        ("card", CARD, is_card),
        ("phone", PHONE, is_phone),
        # Of more digits than a date has.
        ("phone", GROUPED, lambda number: 9 <= len(number) <= 13),
    ):
        for match in pattern.finditer(text):
            if fits(re.sub(r"[ ()./-]", "", match[0])):
                yield kind, *match.span()


def _ibans(text: str) -> Iterator[tuple[int, int]]:
    """Where IBANs stand: each as long as those of its country are, in groups or not, also over a line break."""
    for begin in IBAN_BEGINS.finditer(text):
        if length := LENGTHS.get(begin[0][:2].upper()):
            match = _rest_of_iban(length - 4).match(text, begin.end())
            number = re.sub(r"[\s.-]", "", text[begin.start() : match.end()]).upper() if match else ""
            # Words with a blank between might be taken for groups.
            if match and sum(sign.isdigit() for sign in number) >= LEAST_DIGITS and is_iban(number):
                yield begin.start(), match.end()


@lru_cache
def _rest_of_iban(length: int) -> re.Pattern[str]:
    return re.compile(rf"(?:{_GAP}[A-Za-z0-9]){{{length}}}(?![A-Za-z0-9])")


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
    if (letter := number[0].upper()) not in LETTERS:
        return False
    first = LETTERS[letter]
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
    if not (privacy.may_hold_keys(whole) or "PRIVATE KEY" in whole or _may_hold(whole)):
        return ()
    there = {one.kind for text in every for one in find(text)}
    return tuple(kind for kind in WHAT if kind in there)


def _may_hold(text: str) -> bool:
    """Whether a text holds what an address or a number has in it. Each by itself: together they take ten times as long."""
    return "@" in text or "\uff20" in text or bool(DIGITS.search(text) or AT.search(text))


def masked_turn(turn: Turn, key: bytes) -> Turn:
    """The turn with masks in all that it says."""
    return replace(
        turn, content=masked(turn.content, key), thoughts=masked(turn.thoughts, key), more=masked_json(turn.more, key)
    )


def key_of_all(sources: Sequence[Path]) -> bytes:
    """`key_of` for the files of a data set together."""
    keys = [key_of(source) for source in sources]
    return keys[0] if len(keys) == 1 else hashlib.sha256(b"".join(keys)).digest()


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
