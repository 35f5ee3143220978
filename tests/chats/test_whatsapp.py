"""WhatsApp's exports: its heads in many locales, what is its own and not a person's, and messages that look like heads."""

from __future__ import annotations

import re
import time
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from training.chats import dates as chat_dates
from training.chats import reading, whatsapp, whatsapp_words
from training.chats.messages import Left, Message
from training.chats.opening import Member, Source
from training.errors import UserError


@pytest.fixture
def read(tmp_path: Path):
    """The messages of a text, and what was left out."""

    def run(text: str, order: str | None = None, name: str = "_chat.txt") -> tuple[list[Message], Left]:
        path, left = tmp_path / name, Left()
        path.write_bytes(text.encode("utf-8"))
        (chat,) = whatsapp.read(Member(name, Source(path)), left, order)
        return chat.messages, left

    return run


def said(messages: list[Message]) -> list[tuple[str, str]]:
    return [(one.who, one.text) for one in messages]


def at(message: Message) -> str:
    return datetime.fromtimestamp(message.time, timezone.utc).strftime("%Y-%m-%d %H:%M:%S")


# The same moment, 13 June 2018 at 21:25, as phones write it.
HEADS = [
    ("13/06/2018, 21:25 - Ann: hi", "Android, English (UK)"),
    ("6/13/18, 9:25 PM - Ann: hi", "Android, English (US)"),
    ("6/13/18, 9:25\u202fPM - Ann: hi", "Android since 2023: a narrow blank before PM"),
    ("13/6/2018 9:25 p. m. - Ann: hi", "Android, Spanish"),
    ("13/6/2018, 9:25 p.\u00a0m. - Ann: hi", "Android, Spanish, with a blank that does not break"),
    ("13.06.18, 21:25 - Ann: hi", "Android, German"),
    ("13/06/2018 à 21:25 - Ann: hi", "Android, French"),
    ("13-06-18 21:25 - Ann: hi", "Android, Dutch"),
    ("13.6.2018 klo 21.25 - Ann: hi", "Android, Finnish"),
    ("2018-06-13 21:25 - Ann: hi", "Android, Swedish"),
    ("2018/6/13 下午9:25 - Ann: hi", "Android, Chinese"),
    ("2018年6月13日 晚上9:25 - Ann: hi", "Android, Chinese, with the words"),
    ("2018/06/13 21:25 - Ann: hi", "Android, Japanese"),
    ("2018. 6. 13. 오후 9:25 - Ann: hi", "Android, Korean"),
    ("13\u200f/6\u200f/2018، 9:25 م - Ann: hi", "Android, Arabic, with marks of direction within the date"),
    ("١٣/٦/٢٠١٨, ٢١:٢٥ - Ann: hi", "Android, Arabic digits"),
    ("[13.06.18, 21:25:00] Ann: hi", "iPhone, German"),
    ("[6/13/18, 9:25:00 PM] Ann: hi", "iPhone, English (US)"),
    ("[6/13/18, 9:25:00\u202fPM] Ann: hi", "iPhone since 2023"),
    ("\u200e[13/06/2018, 21:25:00] Ann: hi", "iPhone, with a mark of direction in front"),
    ("[13/06/2018, 21:25:00] \u200eAnn: hi", "iPhone, with a mark before the name"),
    ("[2018/6/13 下午9:25:00] Ann: hi", "iPhone, Chinese (Taiwan)"),
    ("[2018-06-13, 21:25:00] Ann: hi", "iPhone, ISO"),
    ("13.06.18 21.25.00: Ann: hi", "iPhone of old"),
    ("[13/06/2561, 21:25:00] Ann: hi", "iPhone, Thai calendar"),
]


@pytest.mark.parametrize(("head", "what"), HEADS, ids=[what for _, what in HEADS])
def test_the_head_of_each_locale_is_read_with_its_time(head: str, what: str, read) -> None:
    messages, _ = read(head + "\n")
    assert said(messages) == [("Ann", "hi")]
    assert at(messages[0]) == "2018-06-13 21:25:00"


@pytest.mark.parametrize(
    ("written", "hour"),
    [
        ("12:05 AM", 0),
        ("12:05 PM", 12),
        ("1:05 am", 1),
        ("1:05 p.m.", 13),
        ("上午12:05", 0),
        ("中午12:05", 12),
        ("오후 1:05", 13),
    ],
)
def test_noon_and_midnight_of_twelve_hours(written: str, hour: int, read) -> None:
    messages, _ = read(f"2018/6/13 {written} - Ann: hi\n")
    assert at(messages[0]) == f"2018-06-13 {hour:02}:05:00"


def test_a_byte_order_mark_and_windows_lines_are_no_part_of_it(read) -> None:
    messages, _ = read("\ufeff13/06/18, 21:25 - Ann: one\r\ntwo\r\n13/06/18, 21:26 - Ben: three\r\n")
    assert said(messages) == [("Ann", "one\ntwo"), ("Ben", "three")]
    assert [message.line for message in messages] == [1, 3]


def test_lines_of_an_old_mac_are_lines_and_a_nul_is_no_sign_of_a_text(read) -> None:
    text = "13/06/18, 21:25 - Ann: one\r13/06/18, 21:26 - Ben: t\0wo\r"
    assert said(read(text)[0]) == [("Ann", "one"), ("Ben", "two")]
    assert reading.of_head(text.encode()) == "whatsapp"


@pytest.mark.parametrize("text", ["", "\ufeff", " \r\n\n"])
def test_an_empty_export_is_said_to_be_empty(text: str, read) -> None:
    with pytest.raises(UserError, match="_chat.txt: the file is empty$"):
        read(text)


def test_lines_without_a_head_go_on_with_the_message_whatever_breaks_them(read) -> None:
    messages, _ = read("13/06/18, 21:25 - Ann: list:\n1. a\n\n2. b\u2028c\x0bd\n13/06/18, 21:26 - Ben: ok\n")
    assert said(messages) == [("Ann", "list:\n1. a\n\n2. b\u2028c\x0bd"), ("Ben", "ok")]


# ---- which number is the day -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dates", "order"),
    [
        (["03/04/24", "13/04/24"], "dmy"),
        (["03/04/24", "04/13/24"], "mdy"),
        (["03/04/24", "05/04/24", "02/05/24"], "dmy"),
        (["03/04/24", "03/09/24", "04/02/24"], "mdy"),
        (["01/04/24", "02/04/24", "03/04/24", "05/04/24", "06/04/24"], "dmy"),
        (["24. 3. 4.", "24. 3. 14.", "24. 4. 2."], "ymd"),
    ],
)
def test_the_file_as_a_whole_tells_which_number_is_the_day(dates: list[str], order: str) -> None:
    numbers = [tuple(map(int, re.findall(r"\d+", date))) for date in dates]
    stamps = [chat_dates.Stamp(date, 0, spaced=" " in dates[0]) for date in numbers]
    assert chat_dates.orders(stamps) == [order]


def test_dates_that_may_be_read_in_two_ways_are_refused_by_name(read, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read("03/04/2024, 10:00 - Ann: a\n05/06/2024, 10:00 - Ben: b\n")
    assert str(raised.value) == (
        f"{tmp_path / '_chat.txt'}:1: the date 3/4/2024 can be read in 2 ways, and no other date of the file decides: "
        "--date-order dmy (day, month, year) or mdy (month, day, year)"
    )


def test_date_order_decides_and_is_refused_where_it_does_not_fit(read, tmp_path: Path) -> None:
    text = "03/04/2024, 10:00 - Ann: a\n05/06/2024, 10:00 - Ben: b\n"
    assert at(read(text, "dmy")[0][0]) == "2024-04-03 10:00:00"
    assert at(read(text, "mdy")[0][0]) == "2024-03-04 10:00:00"
    with pytest.raises(UserError, match="--date-order ymd does not fit its dates"):
        read(text, "ymd")


def test_the_same_day_in_every_order_is_no_doubt(read) -> None:
    assert at(read("05/05/2024, 10:00 - Ann: a\n")[0][0]) == "2024-05-05 10:00:00"


def test_days_of_no_calendar_are_refused(read) -> None:
    with pytest.raises(UserError, match="days of no calendar"):
        read("44/55/2024, 10:00 - Ann: a\n44/66/2024, 10:00 - Ben: b\n")


def test_a_text_without_heads_is_refused_with_what_one_looks_like(read, tmp_path: Path) -> None:
    with pytest.raises(UserError) as raised:
        read("Hello\nworld\n")
    assert str(raised.value).startswith(
        f"{tmp_path / '_chat.txt'}: no line begins as WhatsApp writes a message (3/4/24, 14:05"
    )


# ---- what is WhatsApp's own --------------------------------------------------------------------------------------

MEDIA = [
    *(
        "<Media omitted>",
        "<Medien ausgeschlossen>",
        "<Multimedia omitido>",
        "<Médias omis>",
        "<Mídia oculta>",
        "null",
        "",
    ),
    *("<媒体已省略>", "<省略多媒體檔案>", "<メディアなし>", "\u200eimage omitted", "image omitted", "Bild weggelassen"),
    *(
        "\u200eplan.pdf • 3 pages document omitted",
        "IMG-20240304-WA0003.jpg (file attached)",
        "PTT-1.opus (Datei angehängt)",
    ),
    *("\u200e<attached: 00000012-PHOTO-2025-03-04-14-06-11.jpg>", "\u200e<Anhang: 00000012-PHOTO.jpg>", "POLL:\nWhen?"),
    *("<Medien ausgeschlossen>\n4Bit Adiere.mod", "Location: https://maps.google.com/?q=1,2"),
]
DELETED = [
    *(
        "This message was deleted",
        "You deleted this message.",
        "You deleted this message as admin",
        "This message was deleted by admin ~ Tom.",
        "Diese Nachricht wurde gelöscht.",
        "Se eliminó este mensaje.",
    ),
    *("\u200eThis message was deleted.", "此訊息已刪除", "このメッセージは削除されました", "تم حذف هذه الرسالة"),
]
OWN = [
    "\u200eMissed voice call",
    "Missed video call",
    "Missed voice call at 10:05 pm",
    "Missed group video call. Tap to call back",
    "Voice call, 1 min",
    "Video call. \u200e2 hr 3 min",
    "Waiting for this message. This may take a while.",
    "Verpasster Sprachanruf um 10:05",
    "\u200eAnn added Ben",
    "Messages and calls are end-to-end encrypted.",
]


@pytest.mark.parametrize(
    ("body", "what"),
    [(one, "media") for one in MEDIA] + [(one, "deleted messages") for one in DELETED] + [(one, "system lines") for one in OWN],
)  # fmt: skip
def test_what_is_no_persons_word_is_counted_and_dropped(body: str, what: str, read) -> None:
    messages, left = read(f"13/06/18, 21:25 - Ann: hi\n13/06/18, 21:26 - Ben: {body}\n13/06/18, 21:27 - Ann: there\n")
    assert said(messages) == [("Ann", "hi"), ("Ann", "there")]
    assert dict(left.counts) == {what: 1}


@pytest.mark.parametrize(
    "line",
    [
        "Messages and calls are end-to-end encrypted. No one outside of this chat can read them.",
        'Ann changed the subject from "Trip: Rome" to "Trip: Oslo"',
        "Ann hat die Gruppe „Ausflug: Rom“ erstellt",
        "Your security code with Ann: Home changed. Tap to learn more.",
    ],
)
def test_lines_without_a_writer_are_systems_even_with_a_colon(line: str, read) -> None:
    messages, left = read(f"13/06/18, 21:25 - {line}\n13/06/18, 21:26 - Ben: hi\n")
    assert (said(messages), dict(left.counts)) == ([("Ben", "hi")], {"system lines": 1})


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("see you at 3 <This message was edited>", "see you at 3"),
        ("bis um 3 \u200e<Diese Nachricht wurde bearbeitet.>", "bis um 3"),
        ("三点见 <此訊息已編輯>", "三点见"),
    ],
)
def test_an_edited_message_is_what_it_was_in_the_end(body: str, text: str, read) -> None:
    messages, left = read(f"13/06/18, 21:25 - Ann: {body}\n")
    assert (said(messages), left.edited) == ([("Ann", text)], 1)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("IMG-1.jpg (file attached)\nlook at that", "look at that"),
        ("<Media omitted>\nlook at that", "look at that"),
        ("look at that \u200e<attached: 00000012-PHOTO.jpg>", "look at that"),
    ],
)
def test_what_is_written_to_a_picture_stays(body: str, text: str, read) -> None:
    assert said(read(f"13/06/18, 21:25 - Ann: {body}\n")[0]) == [("Ann", text)]


@pytest.mark.parametrize(
    "body",
    [
        "I think this message was deleted by mistake?", "<3", "<b>", "<sighs heavily>", "the image omitted the date",
        "note: call me", "it costs 3: no, 4", "missed you", "null and void", "10:30",
        "see <https://example.com> please", "<https://www.example.com>", "mail <mailto:ann@example.com>", "Video call, 8pm?",
        "Missed video call again, sorry! I was out", "Missed voice call?", "Waiting for this message all day",
        "I think the video omitted", "Live location shared with me, thanks",
    ],
)  # fmt: skip
def test_what_only_reminds_of_it_is_a_persons_word(body: str, read) -> None:
    messages, left = read(f"13/06/18, 21:25 - Ann: {body}\n")
    assert (said(messages), dict(left.counts)) == ([("Ann", body)], {})


def test_a_placeholder_in_a_language_that_is_not_known_is_told_by_its_returning(read) -> None:
    body = "".join(f"13/06/18, 21:2{n} - Ann: <midia zgubiona calkiem>\n" for n in range(3))
    messages, left = read(f"13/06/18, 21:20 - Ben: hi\n{body}")
    assert (said(messages), dict(left.counts)) == ([("Ben", "hi")], {"media": 3})


def test_a_name_that_is_no_contact_and_a_phone_number_are_names(read) -> None:
    messages, _ = read("[13/06/18, 21:25:00] ~\u202fDana: a\n[13/06/18, 21:26:00] \u202a+44 7700 900123\u202c: b\n")
    assert said(messages) == [("Dana", "a"), ("+44 7700 900123", "b")]


@pytest.mark.parametrize("words", [whatsapp_words.OMITTED, whatsapp_words.DELETED, whatsapp_words.EDITED])
def test_the_words_stand_as_they_are_compared(words: frozenset[str]) -> None:
    assert all(word == word.strip().casefold().rstrip(".。") and word for word in words)


# ---- messages that look like heads -------------------------------------------------------------------------------


def test_a_chat_that_was_pasted_into_a_message_stays_in_it(read) -> None:
    text = (
        "13/06/18, 21:25 - Ann: look what he wrote\n"
        "12/01/17, 09:00 - Bob: I owe you 100\n"
        "[12/01/17, 09:00:11] Bob: 200\n"
        "14/06/18, 08:00 - Ben: wow\n"
    )
    messages, left = read(text)
    assert said(messages) == [
        ("Ann", "look what he wrote\n12/01/17, 09:00 - Bob: I owe you 100\n[12/01/17, 09:00:11] Bob: 200"),
        ("Ben", "wow"),
    ]
    assert left.notes == [
        "1 line like the head of a message, but out of time (line 2 first): a part of the message before"
    ]


def test_one_line_of_the_future_does_not_swallow_what_follows(read) -> None:
    text = "13/06/18, 21:25 - Ann: a\n13/06/29, 21:25 - Bob: b\n13/06/18, 21:26 - Ben: c\n14/06/18, 21:26 - Ann: d\n"
    assert said(read(text)[0]) == [("Ann", "a\n13/06/29, 21:25 - Bob: b"), ("Ben", "c"), ("Ann", "d")]


def test_a_message_that_arrived_late_is_still_a_message(read) -> None:
    text = "13/06/18, 21:25 - Ann: a\n13/06/18, 20:10 - Ben: late\n13/06/18, 21:26 - Ann: b\n"
    assert said(read(text)[0]) == [("Ann", "a"), ("Ben", "late"), ("Ann", "b")]


def test_times_that_are_none_begin_no_message(read) -> None:
    assert said(read("13/06/18, 21:25 - Ann: a\n13/06/18, 29:71 - Ben: b\n")[0]) == [
        ("Ann", "a\n13/06/18, 29:71 - Ben: b")
    ]


@pytest.mark.slow
def test_long_lines_and_many_do_not_take_for_ever(read) -> None:
    body = "1" * 100_000 + " " * 100_000 + "年" * 50_000
    day = datetime(2018, 6, 13)
    lines = [f"{day + timedelta(minutes=n):%d/%m/%Y, %H:%M} - Ann: {n}" for n in range(40_000)]
    messages, _ = read("\n".join([*lines, body, f"[{body}] x: y"]))
    assert len(messages) == 40_000


# ---- whatever people write, in whatever locale -------------------------------------------------------------------

STYLES = [
    "{:%d/%m/%Y, %H:%M} - ",
    "{:%m/%d/%y, %I:%M\u202f%p} - ",
    "[{:%d.%m.%y, %H:%M:%S}] ",
    "\u200e[{:%Y/%m/%d, %H:%M:%S}] ",
    "{:%d.%m.%Y klo %H.%M} - ",
]
NAMES = st.sampled_from(["Ann", "Ben B.", "王小明", "+44 7700 900123", "O'Neil 🦊", "آنا"])
# No line of it begins like a head, and none is what WhatsApp writes itself: those have tests of their own.
BODIES = st.text(st.characters(exclude_categories=("Cs", "Cc", "Cf"), include_characters="\n\t"), min_size=1).map(
    lambda text: f"w{text.strip()}"
)


@hypothesis_settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(STYLES),
    st.lists(st.tuples(NAMES, BODIES, st.integers(0, 10_000)), min_size=1, max_size=12),
)
def test_what_was_written_comes_back_message_for_message(tmp_path_factory, style: str, written: list) -> None:
    clock, lines, expected = datetime(2024, 3, 14, 9, 26), [], []
    for who, text, minutes in written:
        clock += timedelta(minutes=minutes)
        lines.append(f"{style.format(clock)}{who}: {text}")
        expected.append((who, text.strip("\n "), clock))
    path = tmp_path_factory.mktemp("chat") / "_chat.txt"
    path.write_text("\n".join(lines) + "\n", "utf-8", newline="")
    order = {"m": "mdy", "d": "dmy", "Y": "ymd"}[style[style.index("%") + 1]]
    (chat,) = whatsapp.read(Member(path.name, Source(path)), Left(), order)
    assert [(one.who, one.text) for one in chat.messages] == [(who, text) for who, text, _ in expected]
    assert [at(one)[:16] for one in chat.messages] == [f"{clock:%Y-%m-%d %H:%M}" for _, _, clock in expected]


@hypothesis_settings(max_examples=200, deadline=None)
@given(st.text())
def test_no_text_breaks_the_reader(tmp_path_factory, text: str) -> None:
    path = tmp_path_factory.mktemp("chat") / "_chat.txt"
    path.write_bytes(f"13/06/18, 21:25 - Ann: hi\n{text}".encode("utf-8", "replace"))
    (chat,) = whatsapp.read(Member(path.name, Source(path)), Left())
    assert chat.messages[0].who == "Ann"


@pytest.mark.slow
def test_a_file_whose_time_only_runs_back_does_not_take_for_ever(read) -> None:
    day = datetime(2024, 6, 13)
    lines = [f"{day - timedelta(days=2 * n):%Y/%m/%d, %H:%M} - Ann: {n}" for n in range(2_000)] * 10
    messages, _ = read("\n".join(lines), "ymd")
    assert len(messages) < 2_000


def test_time_grows_with_the_messages_and_not_with_their_square(read) -> None:
    lines = [f"{1 + at // 1440:02}/06/18, {at // 60 % 24:02}:{at % 60:02} - Ann: a" for at in range(40_000)]
    begun = time.process_time()
    messages, left = read("\n".join([*lines, "01/01/15, 21:25 - Ben: quoted"]) + "\n")
    assert len(messages) == 40_000 and "1 line like the head of a message, but out of time" in left.notes[0]
    # Each looked for among all that are kept takes more than 10 seconds.
    assert time.process_time() - begun < 7
