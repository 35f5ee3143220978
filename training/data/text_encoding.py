"""Is a data file UTF-8? The file as a whole decides: one byte that is not means that no cell of it can be believed.

Of the 6,763 characters of GB2312, 930 are valid UTF-8 by chance, so that a cell by itself tells nothing. Standard library
only; a file of 1 GB is looked through in about a second.
"""

from __future__ import annotations

import codecs
import io
import re
import shlex
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from training.data import latin_encodings

CHUNK = 1 << 20
SAMPLE = 1 << 18  # bytes of lines with other characters than ASCII by which an encoding is guessed
LOOKED_AT = 1 << 16  # bytes of it that charset-normalizer is given, where the codecs here do not know it
FITS = 0.6  # share of such characters that must be usual ones: what is read by a wrong codec has 0.1 to 0.5


@dataclass(frozen=True)
class _Codec:
    """An encoding in which data files are found.

    `usual`: the characters that make up nearly all of a text in it. `always`: those of which it has at least one in five.
    """

    python: str
    iconv: str
    what: str
    usual: re.Pattern[str]
    always: re.Pattern[str] | None = None


def _of(codec: str, first: range, last: range) -> str:
    """The characters of a double-byte codec by the ranges of their two bytes, for a class of a regular expression."""
    pairs = (bytes((one, two)).decode(codec, "ignore") for one in first for two in last)
    return re.escape("".join(pair for pair in pairs if len(pair) == 1 and not pair.isascii()))


NONE = re.compile(r"(?!)")
MARKS = "\u3000-\u303f\uff00-\uffef‘’“”…—·"  # punctuation of East Asian texts
KANA, HANGUL, CYRILLIC, LATIN = "\u3041-\u30ff", "\uac00-\ud7a3", "\u0410-\u044fёЁ", "\u00c0-\u00ff"
SMALL = re.compile("[\u0430-\u044fё]")
# The commonest syllables, half of any Korean text: all of Korean is valid GB2312, and much of Chinese valid Hangul.
SYLLABLES = "이다는을의에가고하지로기도서나은리어사한자아를라인스시그해들요니습게만대수있여것부보정과으전일장주와면안세"
UPPER = range(0xA1, 0xFF)


def _codecs() -> list[_Codec]:
    """The encodings, tried strictly, from those that take the fewest byte sequences to those that take nearly all.

    Strictness alone tells little: most Big5 is also valid GB18030, and cp1252 takes all but five bytes. Each standard puts
    the common characters first, so the share of these tells the encodings apart; where two have the same, the narrower one
    is right, for text of the wider one would seldom fit into it by chance.
    """
    chinese, taiwanese = _of("gb2312", range(0xB0, 0xD8), UPPER), _of("big5", range(0xA4, 0xC7), range(0x40, 0xFF))
    japanese = _of("cp932", range(0x88, 0x98), range(0x40, 0xFD))
    gbk = "GBK: Chinese Windows and Excel"
    usual, kana = re.compile(f"[{KANA}{japanese}{MARKS}]"), re.compile(f"[{KANA}]")
    return [
        _Codec("euc_jp", "EUC-JP", "Japanese", usual, kana),
        _Codec("cp932", "CP932", "Japanese Windows, Shift_JIS", usual, kana),
        _Codec("cp949", "CP949", "Korean Windows", re.compile(f"[{HANGUL}{MARKS}]"), re.compile(f"[{SYLLABLES}]")),
        _Codec("gb2312", "GB18030", gbk, re.compile(f"[{chinese}{MARKS}]")),
        _Codec("big5", "BIG5", "Big5: traditional Chinese", re.compile(f"[{taiwanese}{MARKS}]")),
        _Codec("gb18030", "GB18030", gbk, re.compile(f"[{chinese}{MARKS}]")),
        # Words of these letters alone are Cyrillic; Western words have one or two of them among ASCII letters.
        # KOI8-R read so has capitals for small letters.
        _Codec("cp1251", "CP1251", "Cyrillic Windows", re.compile(f"(?:[{CYRILLIC}]{{3,}}|[–—«»„“”№])"), SMALL),
        _Codec(
            "cp1252",
            "CP1252",
            "Western Windows and Excel",
            re.compile(f"(?<![{LATIN}])[{LATIN}]{{1,2}}(?![{LATIN}])|[‘’“”–—…€«»„°§£©®]"),
        ),  # fmt: skip
    ]


def problem(file: io.BufferedIOBase, path: Path, marked: bool) -> str:
    """Why a file is not to be read as UTF-8, with the command that converts it; "" where it is. Reads `file` to its end.

    `marked`: it begins with the mark of UTF-8. A gzip file's damage is raised as reading raises it.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines, first = 1, True
    while chunk := file.read(CHUNK):
        pending = decoder.getstate()[0]
        try:
            text = decoder.decode(chunk)
        except UnicodeDecodeError as error:
            return _refused(file, path, pending + chunk, lines, error.start)
        if first and len(chunk) < CHUNK and not marked and not text.isascii() and _is_chance(text):
            return _by_chance(path, text)
        lines, first = lines + chunk.count(b"\n"), False
    pending = decoder.getstate()[0]
    return _refused(file, path, pending, lines, 0) if pending else ""


def not_meant(file: io.BufferedIOBase, path: Path, encoding: str) -> str:
    """Why a file is not to be read in another encoding than UTF-8: all of it is UTF-8, which would be garbled; else ""."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    foreign = 0
    try:
        while chunk := file.read(CHUNK):
            text = decoder.decode(chunk)
            if foreign < ENOUGH and not text.isascii():
                if not foreign and len(chunk) < CHUNK and _is_chance(text):
                    return ""
                foreign += sum(not letter.isascii() for letter in text)
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return ""
    if foreign < ENOUGH:
        return ""
    return f"{path}: is UTF-8, and would be garbled by ENCODING = {encoding}: ENCODING = auto reads it"


ENOUGH = 8  # characters other than ASCII that are not UTF-8 by chance


def _refused(file: io.BufferedIOBase, path: Path, chunk: bytes, before: int, place: int) -> str:
    """What to say of a file whose first byte that is not UTF-8 stands at `place` of `chunk`, which begins on `before`."""
    line = before + chunk.count(b"\n", 0, place)
    said = f"{path}:{line}: not UTF-8 (byte 0x{chunk[place]:02x}), so none of the file is read"
    file.seek(0)
    found = _likely(b"".join(_sample(file)))
    if not found:
        return (
            f"{said}; it is in no encoding that is known here: it is damaged, or joined from files in several encodings. "
            "Save it as UTF-8, or mend this line and look again"
        )
    if len(found) > 1:
        ways = (
            f"ENCODING = {one.iconv.lower()} ({one.what}) reads it as {shown!r}, and this makes a file of UTF-8: "
            f"{command(path, one.iconv)}"
            for one, shown in found
        )
        return f"{said}; it is not sure in which encoding it is:\n" + "\n".join(f"  {way}" for way in ways)
    ((codec, _),) = found
    return (
        f"{said}; most likely it is {codec.iconv} ({codec.what}): ENCODING = {codec.iconv.lower()} reads it so, "
        f"and this makes a file of UTF-8: {command(path, codec.iconv)}"
    )


def _sample(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The first lines with other characters than ASCII, about SAMPLE bytes of them. All bytes where there are NULs."""
    size = 0
    while size < SAMPLE and (line := file.readline(SAMPLE)):
        if not line.isascii() or b"\0" in line:
            size += len(line)
            yield line


def _guess(sample: bytes) -> _Codec | None:
    """The encoding that a sample is in, most likely; None where it fits into none."""
    best, most = None, FITS
    if b"\0" in sample:
        return None
    for codec in _codecs():
        # The last line may be cut within a character.
        text = _decoded(sample, codec.python) or _decoded(sample.rpartition(b"\n")[0], codec.python)
        foreign = sum(not letter.isascii() for letter in text)
        share = sum(len(found) for found in codec.usual.findall(text)) / foreign if foreign else 0.0
        if codec.always and len(codec.always.findall(text)) < foreign / 5:
            continue
        if share > most:
            best, most = codec, share
    return best


# charset-normalizer's name -> iconv's, and what it is. It is asked where the codecs above do not know the sample, and where
# they may have taken one of these for their own.
OTHERS = {
    "cp1251": ("CP1251", "Cyrillic Windows"),
    "koi8_r": ("KOI8-R", "Cyrillic"),
    "cp866": ("CP866", "Cyrillic DOS"),
    "cp1253": ("CP1253", "Greek Windows"),
    "cp1255": ("CP1255", "Hebrew Windows"),
    "cp1256": ("CP1256", "Arabic Windows"),
    "cp874": ("CP874", "Thai Windows"),
}
# Their letters stand where Cyrillic ones do.
NEAR = ("cp1251", "cp1253", "cp1255", "cp1256", "cp874")
# Share of letters that are not ASCII, of all: texts in Latin letters have 1 to 30 %, in other letters 60 % and more, but
# for names and lines in English among them.
DENSE = 0.4


def _likely(sample: bytes) -> list[tuple[_Codec, str]]:
    """The encodings that a sample is in, most likely, each with what it makes of it where there are several.

    None where it fits into none.
    """
    own = _guess(sample)
    if own is not None and own.python != "cp1252":
        return [((_other_guess(sample, NEAR) or own) if own.python == "cp1251" else own, "")]
    if _is_dense(sample) and (other := _other_guess(sample, tuple(OTHERS))):
        return [(other, "")]
    if not _is_joined(sample) and (latin := latin_encodings.readings(sample)):
        return [(_Codec(one.encoding.python, one.encoding.iconv, one.encoding.what, NONE), one.shown) for one in latin]
    other = own or _other_guess(sample, tuple(OTHERS))
    return [(other, "")] if other else []


def _is_dense(sample: bytes) -> bool:
    accents = sum(byte >= 0x80 for byte in sample)
    return accents > DENSE * (accents + sum(chr(byte).isalpha() for byte in sample if byte < 0x80))


def _foreign(sample: bytes) -> Iterator[bytes]:
    """The lines of a sample that hold more than a character or two of another kind than ASCII."""
    return (line for line in sample.splitlines() if sum(byte >= 0x80 for byte in line) >= ENOUGH)


def _is_joined(sample: bytes) -> bool:
    """Whether lines of UTF-8 stand among others: a file that was joined."""
    return any(_decoded(line, "utf-8") for line in _foreign(sample))


def _other_guess(sample: bytes, among: tuple[str, ...]) -> _Codec | None:
    """What charset-normalizer takes a sample for; None for nothing of OTHERS, or where it is not installed."""
    try:
        import charset_normalizer
    except ModuleNotFoundError:  # a script of this project may run in any Python
        return None
    # A damaged byte or two are no language.
    if sum(byte >= 0x80 for byte in sample) < ENOUGH or _is_joined(sample):
        return None
    best = charset_normalizer.from_bytes(sample[:LOOKED_AT], cp_isolation=list(among)).best()
    if best is None or best.encoding not in OTHERS:
        return None
    iconv, what = OTHERS[best.encoding]
    return _Codec(best.encoding, iconv, what, NONE)


def _decoded(raw: bytes, codec: str) -> str:
    try:
        return raw.decode(codec)
    except UnicodeDecodeError:
        return ""


def _is_chance(text: str) -> bool:
    """Whether a small text is GB2312 that happens to be UTF-8: letters of three alphabets, and all common Chinese else."""
    foreign = "".join(letter for letter in text if not letter.isascii())
    if max(foreign) >= "\u0800" or not (chinese := _decoded(foreign.encode(), "gb2312")):
        return False
    alphabets = {unicodedata.name(letter, "").partition(" ")[0] for letter in foreign}
    common = re.compile(f"[{_of('gb2312', range(0xB0, 0xD8), UPPER)}{MARKS}]")
    return len(alphabets) > 2 and len(common.findall(chinese)) >= FITS * len(chinese)


def _by_chance(path: Path, text: str) -> str:
    line = next(number for number, one in enumerate(text.splitlines(), 1) if not one.isascii())
    shown = next(word for word in re.findall(r"[^\x00-\x7f]+", text))
    return (
        f"{path}:{line}: is UTF-8 by chance only, so none of the file is read: {shown[:8]!r} is "
        f"{shown[:8].encode().decode('gb2312')!r} in GB18030 (GBK: Chinese Windows and Excel): ENCODING = gb18030 reads it "
        f"so, ENCODING = utf-8 as it stands, and this makes a file of UTF-8: {command(path, 'GB18030')}"
    )


def command(path: Path, encoding: str) -> str:
    """The command that converts a data file to UTF-8, beside it."""
    gzipped = path.suffix.lower() == ".gz"
    plain = path.with_suffix("") if gzipped else path
    target = shlex.quote(str(plain.with_name(f"{plain.stem}.utf8{plain.suffix}")))
    source = shlex.quote(str(path))
    if gzipped:
        return f"gzip -dc {source} | iconv -f {encoding} -t UTF-8 > {target}"
    return f"iconv -f {encoding} -t UTF-8 {source} > {target}"
