"""Which encoding a text is said to be in: alone where that is sure, among others, each with its reading, where it is not."""

from __future__ import annotations

import io
import unicodedata
from pathlib import Path

import pytest

from training.data import latin_encodings, text_encoding

# language -> (encoding as Python calls it, as the message does, real sentences)
TEXTS = {
    "Lithuanian": ("cp1257", "CP1257", "Lietuvos sostinė yra Vilnius. Šiandien saulėta ir šilta, bet vakare gali lyti. Ačiū už klausimą, džiaugiuosi galėdamas padėti."),
    "Latvian": ("cp1257", "CP1257", "Latvijas galvaspilsēta ir Rīga. Šodien ir saulains un silts, bet vakarā var līt. Paldies par jautājumu, kā es varētu jums palīdzēt?"),
    "Estonian": ("cp1257", "CP1257", "Täna on päikeseline ja soe, aga õhtul võib vihma sadada. Aitäh küsimuse eest. Šokolaad ja žurnaal on laual, öö on pikk."),
    "Vietnamese": ("cp1258", "CP1258", "Thủ đô của Việt Nam là Hà Nội. Hôm nay trời nắng và ấm, nhưng buổi tối có thể mưa. Cảm ơn bạn đã hỏi."),
    "Polish": ("cp1250", "CP1250", "Stolicą Polski jest Warszawa. Dziś jest słonecznie i ciepło, ale wieczorem może padać. Dziękuję za pytanie."),
    "Czech": ("cp1250", "CP1250", "Hlavním městem Česka je Praha. Dnes je slunečno a teplo, ale večer může pršet. Děkuji za otázku, rád pomohu."),
    "Hungarian": ("cp1250", "CP1250", "Magyarország fővárosa Budapest. Ma napos és meleg idő van, de este eshet az eső. Köszönöm a kérdést, őszintén: fűtés."),
    "Romanian": ("cp1250", "CP1250", "Capitala României este Bucureşti. Astăzi este însorit şi cald, dar seara poate ploua. Mulţumesc pentru întrebare."),
    "Serbian": ("cp1250", "CP1250", "Glavni grad je Beograd. Danas je sunčano i toplo, ali uveče može padati kiša. Žao mi je što čekate, đače."),
    "Turkish": ("cp1254", "CP1254", "Türkiye'nin başkenti Ankara'dır. Bugün güneşli ve sıcak, ama akşam yağmur yağabilir. Teşekkürler."),
    "German": ("cp1252", "CP1252", "Die Hauptstadt von Österreich ist Wien. Heute ist es schön und warm, am Abend könnte es regnen. Grüße!"),
    "French": ("cp1252", "CP1252", "Il fait beau et chaud, mais il peut pleuvoir ce soir. Je suis très heureux d’aider. À bientôt, l’été est déjà là, ça va être la forêt."),
    "Icelandic": ("cp1252", "CP1252", "Höfuðborg Íslands er Reykjavík. Hvernig er veðrið í dag? Það gæti rignt í kvöld. Þakka þér fyrir spurninguna."),
    "French, with its own signs": ("iso8859_15", "ISO-8859-15", "Le prix est de 5 €, déjà payé. Cœur et œuvre, très bien, à bientôt, où êtes-vous ?"),
    "Polish, not Windows": ("iso8859_2", "ISO-8859-2", "Stolicą Polski jest Warszawa. Dziś jest słonecznie i ciepło, ale wieczorem może padać. Dziękuję."),
    "German from a Mac": ("mac_roman", "MACINTOSH", "Die Hauptstadt von Österreich ist Wien. Heute ist es schön und warm, am Abend könnte es regnen. Grüße!"),
    "Portuguese from DOS": ("cp850", "CP850", "A capital do Brasil é Brasília. Hoje está ensolarado, mas à noite pode chover. Não há problema, ações e soluções."),
}  # fmt: skip


def as_bytes(text: str, codec: str) -> bytes:
    """The text in an encoding; in Vietnamese Windows the tone of a letter stands behind it."""
    if codec != "cp1258":
        return text.encode(codec)
    found = ""
    for letter in text:
        base, *marks = unicodedata.normalize("NFD", letter)
        tones = [mark for mark in marks if mark in "\u0300\u0301\u0303\u0309\u0323"]
        found += unicodedata.normalize("NFC", base + "".join(mark for mark in marks if mark not in tones))
        found += "".join(tones)
    return found.encode(codec)


def said(content: bytes) -> str:
    return text_encoding.problem(io.BytesIO(b"question,answer\n" + content), Path("a.csv"), False)


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_of_a_few_sentences_is_told_for_what_it_is(language: str) -> None:
    codec, name, text = TEXTS[language]
    assert f"most likely it is {name} (" in said(as_bytes(text, codec) + b"\n")


WINDOWS = [language for language, (codec, _, _) in TEXTS.items() if codec.startswith("cp12")]


@pytest.mark.parametrize("language", WINDOWS)
def test_of_a_single_sentence_no_wrong_encoding_is_named_alone(language: str) -> None:
    codec, _, text = TEXTS[language]
    for sentence in text.split(". "):
        raw = as_bytes(sentence, codec)
        if raw.isascii():
            continue
        found = latin_encodings.readings(raw)
        shown = unicodedata.normalize("NFC", raw.decode(codec))
        assert any(unicodedata.normalize("NFC", one.shown) in shown for one in found), (sentence, found)


def test_where_it_is_not_sure_each_is_named_with_its_line_and_how_it_reads() -> None:
    assert said("Who?,Latvijas galvaspilsēta\n".encode("cp1257")) == (
        "a.csv:2: not UTF-8 (byte 0xe7), so none of the file is read; it is not sure in which encoding it is:\n"
        "  ENCODING = cp1252 (Western Windows and Excel) reads it as 'Who?,Latvijas galvaspilsçta', "
        "and this makes a file of UTF-8: iconv -f CP1252 -t UTF-8 a.csv > a.utf8.csv\n"
        "  ENCODING = cp1257 (Baltic Windows) reads it as 'Who?,Latvijas galvaspilsēta', "
        "and this makes a file of UTF-8: iconv -f CP1257 -t UTF-8 a.csv > a.utf8.csv"
    )


@pytest.mark.parametrize("encoding", latin_encodings.ENCODINGS, ids=lambda one: one.iconv)
def test_the_encoding_is_known_by_the_name_that_the_message_gives(encoding: latin_encodings.Latin) -> None:
    assert "é".encode(encoding.iconv.lower()) == "é".encode(encoding.python)


def test_quotation_marks_of_word_processors_alone_are_western() -> None:
    assert "most likely it is CP1252 " in said("Who?,I don’t know – “maybe” … it’s 5 €\n".encode("cp1252"))


def test_bytes_of_no_language_are_in_no_encoding() -> None:
    assert latin_encodings.readings(b"ab\xa4\xb6\xd7cd\xf7\xbc\xa6 \xac\xae") == []
    assert latin_encodings.readings(b"only ASCII") == []
