"""Which of the encodings of Latin letters a text is in: told by the letters with accents that each language has.

The same byte is č for a Lithuanian, è for a Frenchman and Ž on a Mac: read by a wrong encoding, a text has letters side by
side that no language has. Where two readings are as good, both are named. Standard library only.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

# Letters with accents that are usual in texts of a language, the small ones. Foreign words bring others, now and then.
LANGUAGES = {
    "French": "àâæçéèêëîïôùûüÿœ",
    "German": "äöüß",
    "Spanish": "áéíóúñü",
    "Catalan": "àçéèíïòóúü",
    "Portuguese": "áâãàçéêíóôõú",
    "Italian": "àèéìíòóùú",
    "Dutch": "áéèëïíóöü",
    "Swedish, Finnish": "åäöé",
    "Danish, Norwegian": "æøåéò",
    "Icelandic": "áæðéíóöþúý",
    "Irish": "áéíóú",
    "Polish": "ąćęłńóśźż",
    "Czech": "áčďéěíňóřšťúůýž",
    "Slovak": "áäčďéíľňóôšťúýž",
    "Hungarian": "áéíóöőúüű",
    "Croatian, Serbian, Slovene": "čćđšž",
    "Romanian": "ăâîşţșț",
    "Albanian": "çë",
    "Turkish": "çğıİöşüâ",
    "Lithuanian": "ąčęėįšųūž",
    "Latvian": "āčēģīķļņšūž",
    "Estonian": "äõöüšž",
    "Vietnamese": "àáâãèéêìíòóôõùúýăđĩũơư\u0300\u0301\u0303\u0309\u0323",
}
# A file may hold several languages of one region, in an encoding for that; it is less sure.
WEST = ("French", "German", "Spanish", "Portuguese", "Italian", "Swedish, Finnish", "Danish, Norwegian")
CENTRE = ("German", "Polish", "Czech", "Slovak", "Hungarian", "Croatian, Serbian, Slovene", "Romanian")
MIXED = 0.95
CENTRAL = ("cp1250", "iso8859_2", "mac_latin2", "cp852")
LETTERS = [frozenset(small + small.upper()) for small in LANGUAGES.values()]
OF_WEST, OF_CENTRE = (
    frozenset("".join(LANGUAGES[name] + LANGUAGES[name].upper() for name in names)) for names in (WEST, CENTRE)
)
# What stands between words and digits, in any language; the first ones also within a word.
WITHIN = "’‘·\u00ad"
MARKS = frozenset("“”„‚‘’‹›«»–—…•€£°§©®™¿¡²³½×·\u00a0\u00ad")


class Latin(NamedTuple):
    """An encoding: as Python and iconv call it, what it is, and whether files in it are rare."""

    python: str
    iconv: str
    what: str
    rare: bool = False


# The commonest first: of those that read a text alike, the first is named.
ENCODINGS = (
    Latin("cp1252", "CP1252", "Western Windows and Excel"),
    Latin("cp1250", "CP1250", "Central European Windows"),
    Latin("cp1254", "CP1254", "Turkish Windows"),
    Latin("cp1257", "CP1257", "Baltic Windows"),
    Latin("cp1258", "CP1258", "Vietnamese Windows"),
    Latin("iso8859_2", "ISO-8859-2", "Central European", True),
    Latin("iso8859_15", "ISO-8859-15", "Western European", True),
    Latin("mac_roman", "MACINTOSH", "Excel for Mac", True),
    Latin("mac_latin2", "MACCENTRALEUROPE", "Central European Macs", True),
    Latin("cp850", "CP850", "Western DOS", True),
    Latin("cp852", "CP852", "Central European DOS", True),
)
GOOD = 0.9  # share of such characters that must be letters of one language: damaged text and other scripts have less
SURE = 0.02  # by which the best reading must be better than the next one to be named alone
SHOWN, MOST = 40, 3  # characters of a sample; readings that are named
LOOKED_AT = 1 << 16  # bytes

FOREIGN = re.compile(r"[^\x00-\x7f]")
# Capital letters behind small ones, signs within a word, and such that begin none: no language writes so.
ODD = re.compile(r"(?<=[^\W\d_A-Z])(?=[^\W\d_a-z])(?P<capital>[^\W\x00-\x7f])|(?P<sign>[^\x00-\x7f])(?=[a-z])")
BEGIN = "“„‚‘’‹«¿¡—–€£§\u00a0"


class Reading(NamedTuple):
    """An encoding that a sample may be in, how well it fits, and the sample read so."""

    encoding: Latin
    fit: float
    shown: str


def readings(sample: bytes) -> list[Reading]:
    """The encodings that a sample may be in, the likeliest first: one alone where it is sure; none where none fits."""
    found: dict[str, Reading] = {}
    for encoding in ENCODINGS:
        text = _decoded(sample[:LOOKED_AT], encoding.python)
        region = OF_CENTRE if encoding.python in CENTRAL else OF_WEST
        if (fit := _fit(text, region)) >= GOOD and text not in found:
            found[text] = Reading(encoding, fit, _shown(text))
    if not found:
        return []
    common = [one.fit for one in found.values() if not one.encoding.rare]
    best = max(one.fit for one in found.values())
    # A rare encoding is thought of where it fits better than all the common ones.
    least = max(common, default=0.0)
    meant = [one for one in found.values() if one.fit >= best - SURE and (not one.encoding.rare or one.fit > least)]
    return sorted(meant, key=lambda one: -one.fit)[:MOST]


def _decoded(raw: bytes, codec: str) -> str:
    """The text; "" where it is in another encoding. The last character may be cut, never of these."""
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return ""


def _fit(text: str, region: frozenset[str]) -> float:
    """The share of its characters that are not ASCII which the language that fits best would have there.

    region: the letters of all languages that its encoding is for.
    """
    foreign = FOREIGN.findall(text)
    if not foreign:
        return 0.0
    odd = sum(1 for match in ODD.finditer(text) if _is_odd(match))
    most = MIXED * sum(one in region or one in MARKS for one in foreign)
    for letters in LETTERS:
        most = max(most, sum(one in letters or one in MARKS for one in foreign))
    return (most - odd) / len(foreign)


def _is_odd(match: re.Match[str]) -> bool:
    if match["capital"]:
        return match["capital"].isupper()
    one = match["sign"]
    if one.isalpha():
        return False
    before = match.string[max(0, match.start() - 1) : match.start()]
    return one not in (WITHIN if before.isalpha() else BEGIN) and not unicodedata.combining(one)


def _shown(text: str) -> str:
    """A stretch of the text with such a character in it, of one line."""
    place = next(match.start() for match in FOREIGN.finditer(text))
    begin = max(text.rfind("\n", 0, place) + 1, text.rfind(" ", 0, max(0, place - SHOWN // 2)) + 1)
    return text[begin : begin + SHOWN].splitlines()[0].strip()
