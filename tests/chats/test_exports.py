"""Exports of each program: told apart by themselves, read as what was said, whole or within a zip file, and by nobody broken."""

from __future__ import annotations

import copy
import json
import os
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests.support import exports
from training import chats
from training.chats import assistants, fields, opening, programs
from training.chats.messages import Left
from training.chats.opening import Source
from training.errors import UserError

zipfile_class = zipfile.ZipFile
MINE = {"whatsapp": ["Ben"], "discord": ["Ben"], "slack": ["benny"]}  # the others say themselves whose they are
EXPECTED: dict[str, list[list[tuple[str, str]]]] = {
    "whatsapp": [
        [("user", "Hi Ben, are you there?"), ("assistant", "yo\nwhat's up"), ("user", "look"), ("assistant", "nice!!")],
        [("user", "dinner?"), ("assistant", "yo, sure")],
    ],
    "telegram": [
        [("user", "Hi, see\nthis https://a.example here"), ("assistant", "yo"), ("user", "photo words"), ("assistant", "nice")]
    ],
    "chatgpt": [
        [("user", "When was Rome founded?"), ("assistant", "In 753 BC ."), ("user", "Who says so?"), ("assistant", "Varro.")]
    ],
    "claude": [[("user", "Sum it up.\n\nOslo is large."), ("assistant", "Oslo: large.")]],
    "openwebui": [[("system", "Be short."), ("user", "How hot?"), ("assistant", "80 °C.")]],
    "slack": [
        [("user", "@Benny is it 1 < 2 in #general?"), ("assistant", "yo here")],
        [("user", "Plans?"), ("assistant", "none")],
    ],
    "discord": [[("user", "Anna: who comes?\nCem: not me"), ("assistant", "yo me")]],
    "wechat-csv": [[("user", "在吗\n有事"), ("assistant", "在[捂脸]")], [("user", "别的聊天"), ("assistant", "好")]],
}  # fmt: skip


@pytest.fixture
def every(tmp_path: Path) -> dict[str, Path]:
    return exports.every(tmp_path)


def turns(path: Path, kind: str, *my_names: str, **more: object) -> list[list[tuple[str, str]]]:
    found, _ = chats.read(path, kind, chats.Wanted(my_names=my_names, **more))
    return [list(one.turns) for one in found]


def told(path: Path, kind: str, *my_names: str) -> list[str]:
    found, picture = chats.read(path, kind, chats.Wanted(my_names=my_names))
    list(found)
    return list(picture.lines())


@pytest.mark.parametrize("kind", chats.NAMES)
def test_each_export_is_told_by_itself_and_read_as_what_was_said(kind: str, every: dict[str, Path]) -> None:
    assert chats.kind_of(every[kind]) == kind
    assert turns(every[kind], kind, *MINE.get(kind, ())) == EXPECTED[kind]


@pytest.mark.parametrize("kind", chats.NAMES)
def test_each_export_is_read_from_a_zip_file(kind: str, every: dict[str, Path], tmp_path: Path) -> None:
    source = every[kind]
    files = [source] if source.is_file() else sorted(path for path in source.rglob("*") if path.is_file())
    with zipfile.ZipFile(tmp_path / "a.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            archive.write(path, path.name if source.is_file() else str(path.relative_to(source)))
        archive.writestr("__MACOSX/._chat.txt", b"\0\1")
        archive.writestr("photo.jpg", b"\xff\xd8")
    assert chats.kind_of(tmp_path / "a.zip") == kind
    assert turns(tmp_path / "a.zip", kind, *MINE.get(kind, ())) == EXPECTED[kind]


def test_a_whole_account_of_telegram_says_who_its_owner_is(tmp_path: Path) -> None:
    path = exports.as_json(tmp_path / "result.json", exports.TELEGRAM_ACCOUNT)
    assert chats.kind_of(path) == "telegram"
    assert turns(path, "telegram") == EXPECTED["telegram"]
    assert "  1 of type saved_messages left out: nobody answers there" in told(path, "telegram")


@pytest.mark.parametrize("name", ["Ben", "@ben", "user12", "12"])
def test_one_may_be_named_as_the_program_knows_one(name: str, every: dict[str, Path]) -> None:
    assert turns(every["telegram"], "telegram", name) == EXPECTED["telegram"]


@pytest.mark.parametrize("name", ["U2", "Ben B", "ben", "Benny"])
def test_in_slack_too(name: str, every: dict[str, Path]) -> None:
    assert turns(every["slack"], "slack", name) == EXPECTED["slack"]


def test_the_other_one_may_be_learned_as_well(every: dict[str, Path]) -> None:
    assert turns(every["telegram"], "telegram", "Anna")[0][0] == ("assistant", "Hi, see\nthis https://a.example here")


# ---- the other forms of tables from WeChat -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("table", "names"),
    [
        (
            "id,MsgSvrID,type_name,is_sender,talker,room_name,msg,src,CreateTime\n"
            "1,9,文本,0,wxid_a,r,在吗,,2024-03-13 18:00:01\n2,9,图片,0,wxid_a,r,[图片],a.jpg,2024-03-13 18:00:02\n"
            "3,9,文本,1,wxid_b,r,在[引用 安娜：在吗],,2024-03-13 18:00:03\n",
            [],
        ),
        (
            "id,type_name,is_sender,talker,room_name,content,CreateTime\n"
            '1,文本,0,a,r,"{""src"": """", ""msg"": ""在吗""}",1710324001\n2,文本,1,b,r,"{""msg"": ""在""}",1710324002\n',
            [],
        ),
        (
            "消息ID,类型,发送人,时间,内容,备注,昵称,更多信息\n1,文本,安娜,2024-03-13 18:00:01,在吗,,,\n"
            "2,系统消息,安娜,2024-03-13 18:00:01,你撤回了一条消息,,,\n3,文本,小本,2024-03-13 18:00:02,在,,,\n",
            ["小本"],
        ),
        (
            "Time,SenderName,Sender,TalkerName,Talker,Content\n2024-03-13 18:00:01,安娜,wxid_a,安娜,wxid_a,在吗\n"
            "2024-03-13 18:00:01,安娜,wxid_a,安娜,wxid_a,![图片](http://127.0.0.1/1)\n"
            "2024-03-13 18:00:02,小本,wxid_b,安娜,wxid_a,在\n",
            ["wxid_b"],
        ),
    ],
)
def test_tables_of_other_exporters_from_wechat(table: str, names: list[str], tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(table, "utf-8")
    assert chats.kind_of(path) == "wechat-csv"
    assert turns(path, "wechat-csv", *names) == [[("user", "在吗"), ("assistant", "在")]]


TIMES = "id,type_name,is_sender,talker,room_name,msg,src,CreateTime\n"


def test_a_table_that_was_saved_again_keeps_its_order_and_its_pauses(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(
        f"{TIMES}3,文本,0,a,r,三,,2024/3/10 9:05\n4,文本,1,b,r,四,,2024/3/10 9:06\n"
        "1,文本,0,a,r,一,,2024/3/4 9:05\n2,文本,1,b,r,二,,2024/3/4 10:06\n",
        "utf-8",
    )
    assert turns(path, "wechat-csv") == [[("user", "一"), ("assistant", "二")], [("user", "三"), ("assistant", "四")]]


def test_where_a_time_is_not_known_the_order_of_the_file_stays_and_it_is_said(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_text(f"{TIMES}1,文本,0,a,r,一,,2024/3/4 9:05\n2,文本,1,b,r,二,,gestern\n", "utf-8")
    assert turns(path, "wechat-csv") == [[("user", "一"), ("assistant", "二")]]
    said = "  r: 1 message with a time that cannot be read (line 3 first): its messages stay in the order of the file"
    assert any(line.startswith(said) for line in told(path, "wechat-csv"))


def a_table(path: Path, *times: str) -> Path:
    """A table saved again by a program: a question and an answer by turns."""
    rows = (f"{n},文本,{n % 2},a,r,{n},,{time}\n" for n, time in enumerate(times))
    path.write_text(f"{TIMES}{''.join(rows)}", "utf-8")
    return path


@pytest.mark.parametrize(
    ("times", "days"),
    [
        # A 13th month is none; time runs forward; AM and PM; two digits of a year.
        (["1/12/2026 10:05", "1/12/2026 10:06", "1/13/2026 9:00", "1/13/2026 9:01"], ["2026-01-12", "2026-01-13"]),
        (["12.01.2026 10:05", "12.01.2026 10:06", "13.01.2026 09:00", "13.01.2026 09:01"], ["2026-01-12", "2026-01-13"]),
        (["01/03/2026 9:05", "01/03/2026 9:06", "01/09/2026 9:05", "01/09/2026 9:06", "02/04/2026 9:05", "02/04/2026 9:06"],
         ["2026-01-03", "2026-02-04"]),
        (["1/13/26 11:59:01 PM", "1/14/26 12:00:05 AM", "1/14/26 9:00:00 AM", "1/14/26 9:00:09 AM"], ["2026-01-13", "2026-01-14"]),
        (["5/5/2026 10:05", "5/5/2026 10:06", "6/6/2026 10:05", "6/6/2026 10:06"], ["2026-05-05", "2026-06-06"]),
    ],
)  # fmt: skip
def test_the_day_in_a_table_that_was_saved_in_another_locale_is_found_from_all_its_dates(
    times: list[str], days: list[str], tmp_path: Path
) -> None:
    said = told(a_table(tmp_path / "a.csv", *times), "wechat-csv")
    assert any(line.endswith(f", {' to '.join(days)}") for line in said), said
    assert not any("cannot be read" in line for line in said)


def test_a_table_whose_dates_leave_a_doubt_is_refused_with_the_option_that_decides(tmp_path: Path) -> None:
    path = a_table(tmp_path / "a.csv", "01/02/2026 10:05", "01/02/2026 10:06", "03/04/2026 9:05", "03/04/2026 9:06")
    with pytest.raises(
        UserError, match=r"a.csv:2: the date 1/2/2026 can be read in 2 ways, .* --date-order dmy .* or mdy"
    ):
        turns(path, "wechat-csv")
    whole = [[("user", "0"), ("assistant", "1")], [("user", "2"), ("assistant", "3")]]
    assert turns(path, "wechat-csv", date_order="dmy") == turns(path, "wechat-csv", date_order="mdy") == whole
    with pytest.raises(UserError, match=r"a.csv: --date-order ymd does not fit its dates"):
        turns(path, "wechat-csv", date_order="ymd")
    with pytest.raises(UserError, match=r"--date-order dmy: .*b.csv says itself which is the day"):
        turns(a_table(tmp_path / "b.csv", "2026-01-02 10:05:00", "2026-01-02 10:05:01"), "wechat-csv", date_order="dmy")


def test_a_table_in_gbk_is_read_where_that_is_named(every: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "gbk.csv"
    path.write_bytes(exports.WECHAT.lstrip("\ufeff").encode("gb18030"))
    with pytest.raises(UserError, match=r"gbk.csv:2: is not UTF-8: --encoding names it, as in --encoding gb18030"):
        turns(path, "wechat-csv")
    assert turns(path, "wechat-csv", encoding="gb18030") == EXPECTED["wechat-csv"]


def test_columns_of_no_exporter_are_named_with_those_that_are_known(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("a,b\n1,2\n", "utf-8")
    with pytest.raises(
        UserError, match=r"a.csv:1: the columns are of no exporter that is known here, which have: .*TalkerId"
    ):
        turns(tmp_path / "a.csv", "wechat-csv")


# ---- conversations with an assistant -----------------------------------------------------------------------------


def test_an_answer_to_an_image_is_not_learned(tmp_path: Path) -> None:
    found = copy.deepcopy(exports.CHATGPT[:1])
    asked = found[0]["mapping"]["n5"]["message"]
    asked["content"] = {"content_type": "multimodal_text", "parts": [{"content_type": "image_asset_pointer"}]}
    path = exports.as_json(tmp_path / "conversations.json", found)
    assert turns(path, "chatgpt") == [EXPECTED["chatgpt"][0][:2]]
    assert "1 answer to what is not in the export (an image, a file)" in "\n".join(told(path, "chatgpt"))


IMAGE, WORDS = {"content_type": "image_asset_pointer", "asset_pointer": "file-service://x"}, "What is in it?"


@pytest.mark.parametrize(
    "more",
    [
        {"content": {"content_type": "multimodal_text", "parts": [IMAGE, WORDS]}},
        {"content": {"content_type": "text", "parts": [WORDS]}, "metadata": {"attachments": [{"id": "1", "name": "a.pdf"}]}},
        {"content": {"content_type": "multimodal_text", "parts": [
            {"content_type": "audio_transcription", "text": WORDS}, {"content_type": "real_time_user_audio_video_asset_pointer",
             "audio_asset_pointer": {}, "video_container_asset_pointer": {"content_type": "video"}}]}},
    ],
)  # fmt: skip
def test_an_answer_to_an_image_or_file_with_words_is_not_learned_from_chatgpt(more: dict, tmp_path: Path) -> None:
    found = copy.deepcopy(exports.CHATGPT[:1])
    found[0]["mapping"]["n5"]["message"] |= more
    assert turns(exports.as_json(tmp_path / "conversations.json", found), "chatgpt") == [EXPECTED["chatgpt"][0][:2]]


def test_what_was_spoken_to_chatgpt_is_learned_by_its_words(tmp_path: Path) -> None:
    found = copy.deepcopy(exports.CHATGPT[:1])
    parts = [{"content_type": "audio_transcription", "text": "Who says so?"}, {"content_type": "audio_asset_pointer"}]
    found[0]["mapping"]["n5"]["message"]["content"] = {"content_type": "multimodal_text", "parts": parts}
    assert turns(exports.as_json(tmp_path / "conversations.json", found), "chatgpt") == EXPECTED["chatgpt"]


@pytest.mark.parametrize(
    ("more", "is_learned"),
    [
        ({"files": [{"file_name": "a.png"}]}, False),
        ({"attachments": [{"file_name": "a.pdf", "extracted_content": ""}]}, False),
        ({"content": [{"type": "text", "text": "Sum it up."}, {"type": "image", "source": {}}]}, False),
        ({"files": [{"file_name": "paste.txt"}]}, True),
    ],
)
def test_an_answer_to_a_file_is_learned_from_claude_where_the_export_holds_it(
    more: dict, is_learned: bool, tmp_path: Path
) -> None:
    found = copy.deepcopy(exports.CLAUDE)
    found[0]["chat_messages"][0] |= more
    path = exports.as_json(tmp_path / "conversations.json", found)
    assert turns(path, "claude") == (EXPECTED["claude"] if is_learned else [])


@pytest.mark.parametrize(
    "more",
    [
        {"files": [{"type": "image", "url": "data:image/png;base64,"}]},
        {"content": [{"type": "text", "text": "How hot?"}, {"type": "image_url", "image_url": {"url": "data:"}}]},
    ],
)
def test_an_answer_to_an_image_or_file_is_not_learned_from_open_webui(more: dict, tmp_path: Path) -> None:
    found = copy.deepcopy(exports.OPENWEBUI)
    every = found[0]["chat"]["history"]["messages"]
    next(one for one in every.values() if one["role"] == "user").update(more)
    assert turns(exports.as_json(tmp_path / "conversations.json", found), "openwebui") == []


def test_without_a_current_node_the_last_branch_is_read() -> None:
    found = copy.deepcopy(exports.CHATGPT[0])
    del found["current_node"]
    assert [one.text for one in assistants.chatgpt(found, 1, Left()).messages][:2] == [
        "When was Rome founded?",
        "In 753 BC .",
    ]


def test_a_tree_that_leads_into_itself_ends() -> None:
    found = copy.deepcopy(exports.CHATGPT[0])
    found["mapping"]["n0"]["parent"] = "n8"
    assert len(assistants.chatgpt(found, 1, Left()).messages) == 4


def test_edited_questions_of_claude_are_one_branch() -> None:
    def one(number: str, parent: str, sender: str, text: str) -> dict:
        return {"uuid": number, "parent_message_uuid": parent, "sender": sender, "text": text}

    messages = [one("1", "0", "human", "a"), one("2", "1", "assistant", "b"), one("3", "0", "human", "A"), one("4", "3", "assistant", "B")]  # fmt: skip
    found = assistants.claude({"uuid": "u", "chat_messages": messages}, 1, Left())
    assert [message.text for message in found.messages] == ["A", "B"]


# ---- what nobody should break ------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
SAMPLES = [
    exports.TELEGRAM,
    exports.TELEGRAM_ACCOUNT,
    exports.DISCORD,
    exports.CHATGPT,
    exports.CLAUDE,
    exports.OPENWEBUI,
]
READERS: list[Callable[[object], object]] = [
    lambda found: programs.telegram(found, Left()),
    lambda found: programs.telegram(found, Left()),
    lambda found: programs.discord(found, Left()),
    lambda found: assistants.read(found, "chatgpt", Left()),
    lambda found: assistants.read(found, "claude", Left()),
    lambda found: assistants.read(found, "openwebui", Left()),
]


def places(found: object) -> list[tuple[object, object]]:
    """Every place in a JSON value: what holds it, and its key or number there."""
    inner = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [place for key, value in inner for place in [(found, key), *places(value)]]


@hypothesis_settings(max_examples=300, deadline=None)
@given(st.sampled_from(range(len(SAMPLES))), st.randoms(use_true_random=False), JSON)
def test_any_value_anywhere_in_an_export_is_borne(number: int, random: object, value: object) -> None:
    found = copy.deepcopy(SAMPLES[number])
    holder, key = random.choice(places(found))
    holder[key] = value
    for chat in READERS[number](found):
        for message in chat.messages:
            message.text.encode("utf-8")
            message.who.encode("utf-8")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1710324000", 1710324000.0), (1710324000123, 1710324000.123), ("2024-03-13T10:00:00Z", 1710324000.0),
        ("2024-03-13 10:00:00", 1710324000.0), ("2024-03-13T11:00:00.5+01:00", 1710324000.5), (True, None), ("x", None),
        (float("nan"), None), (10**400, None), (None, None), ("2024/03/13 10:00:00", 1710324000.0),
        ("2024/3/4 9:05", 1709543100.0), ("2024/3/4 9:05:07.25", 1709543107.25), ("2024-3-4T9:05:7Z", 1709543107.0),
        ("2024.3.4 9:05", 1709543100.0), ("2024/3/4", 1709510400.0), ("2024-3-4 10:05 +01:00", 1709543100.0),
        ("2024/3/4 9:05.5", None), ("2024/13/4 9:05", None), ("3/4/2024 9:05", None),
    ],
)  # fmt: skip
def test_moments(value: object, expected: float | None) -> None:
    assert fields.seconds(value) == expected


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[" * 100_000, "is nested too deep to be an export"),
        (b'[{"mapping": {', "is not JSON: "),
        (b'{"name": "\xff"}', ":1: is not UTF-8"),
        (b"{}", "is no export of ChatGPT: it holds none of its conversations"),
        (b"[1" + b"0" * 5000 + b"]", "is not JSON: "),
    ],
)
def test_a_file_that_is_none_is_refused_by_name(content: bytes, reason: str, tmp_path: Path) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(UserError) as raised:
        turns(tmp_path / "a.json", "chatgpt")
    assert str(raised.value).startswith(str(tmp_path / "a.json")) and reason in str(raised.value)


def test_a_damaged_zip_file_and_one_with_a_password_are_told(tmp_path: Path) -> None:
    whole = exports.zipped(tmp_path / "a.zip", _chat__txt=exports.WHATSAPP.encode() * 50).read_bytes()
    (tmp_path / "cut.zip").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match=r"cut.zip: the zip file is damaged or cut short .*export it anew"):
        turns(tmp_path / "cut.zip", "whatsapp", "Ben")
    locked = bytearray(whole)
    for mark in (b"PK\x03\x04", b"PK\x01\x02"):
        at = locked.index(mark)
        locked[at + (6 if mark.endswith(b"\x03\x04") else 8)] |= 1
    (tmp_path / "locked.zip").write_bytes(bytes(locked))
    with pytest.raises(UserError, match="is locked by a password"):
        turns(tmp_path / "locked.zip", "whatsapp", "Ben")


@pytest.mark.parametrize("kind", chats.NAMES)
@pytest.mark.parametrize("text", ["", "\ufeff \r\n"])
def test_an_empty_export_is_said_to_be_empty(kind: str, text: str, tmp_path: Path) -> None:
    folder = tmp_path / "slack"
    folder.mkdir()
    path = folder / ("users.json" if kind == "slack" else "a.txt")
    path.write_text(text, "utf-8")
    with pytest.raises(UserError, match="the file is empty$"):
        turns(folder if kind == "slack" else path, kind)


def test_a_time_of_telegram_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    said = [
        {"id": n, "type": "message", "date": date, "from": who, "from_id": who, "text": who}
        for n, (who, date) in enumerate([("Ann", "13.01.2026 10:05:00"), ("Ben", "14.01.2026 10:05:00")])
    ]
    held = {"name": "Ann", "type": "personal_chat", "id": 5, "messages": said}
    (tmp_path / "result.json").write_text(json.dumps(held), "utf-8")
    assert any(
        "Ann: 2 messages with a time that cannot be read" in line for line in told(tmp_path / "result.json", "telegram")
    )


def test_messages_of_discord_with_the_newest_first_are_put_in_order(every: dict[str, Path]) -> None:
    held = json.loads(every["discord"].read_text("utf-8"))
    held["messages"].reverse()
    every["discord"].write_text(json.dumps(held), "utf-8")
    assert turns(every["discord"], "discord", "Ben") == EXPECTED["discord"]


def test_a_zip_file_or_folder_without_a_chat_says_what_it_lacks(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "photo.jpg").touch()
    for name, held in (("empty.zip", {}), ("photos.zip", {"a.jpg": b"x"}), ("within.zip", {"chat.zip": b"PK\x03\x04"})):
        with zipfile_class(tmp_path / name, "w") as archive:
            for member, raw in held.items():
                archive.writestr(member, raw)
    for name in ("empty.zip", "photos.zip", "within.zip", "folder"):
        for kind, ending in (("whatsapp", ".txt"), ("wechat-csv", ".csv"), ("telegram", ".json"), ("claude", ".json")):
            with pytest.raises(
                UserError, match=rf"{name}: holds no file that ends in {ending}, as an export of .* does"
            ):
                turns(tmp_path / name, kind)


@pytest.mark.parametrize(
    ("written", "typed"),
    [
        ("Ben ❤\ufe0f", "ben ❤"),
        ("Ben ❤", "Ben ❤\ufe0f"),
        ("Jose\u0301", "José"),
        ("José", "Jose\u0301"),
        ("\u202a+49\u00a0171\u00a01234567\u202c", "+491711234567"),
        ("+49 171 1234567", "+49 (171) 123-45-67"),
        ("\u2068Ben\u2069 B", "Ben B"),
        ("👨\u200d👩\u200d👧 Ben", "👨\u200d👩\u200d👧 ben"),
    ],
)
def test_a_name_is_known_though_its_signs_are_typed_otherwise(written: str, typed: str, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text(f"13/06/18, 21:25 - Ann: one\n13/06/18, 21:26 - {written}: two\n", encoding="utf-8")
    assert turns(tmp_path / "a.txt", "whatsapp", typed) == [[("user", "one"), ("assistant", "two")]]


def test_a_zip_file_that_swells_is_refused_and_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MOST_BYTES", 1 << 20)
    path = exports.zipped(tmp_path / "a.zip", conversations__json=b"[" + b" " * (8 << 20) + b"]")
    assert path.stat().st_size < 1 << 16
    with pytest.raises(
        UserError, match=r"a.zip, conversations.json: holds more than 1.0 MB: export fewer chats at a time"
    ):
        turns(path, "chatgpt")
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


def test_the_list_of_a_zip_file_is_read_but_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for number in range(3):
            archive.writestr(f"{number}.json", "[]")
    opened = []
    monkeypatch.setattr(opening.zipfile, "ZipFile", lambda *how: opened.append(how) or zipfile_class(*how))
    assert [member.json() for member in Source(path).members(".json")] == [[], [], []]
    assert len(opened) == 1


def test_names_that_lead_out_of_a_zip_file_lead_nowhere(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("../../_chat.txt", exports.WHATSAPP)
    with pytest.raises(UserError, match="holds no file that ends in .txt, as an export of WhatsApp does"):
        turns(tmp_path / "a.zip", "whatsapp", "Ben")
    assert [one.name for one in tmp_path.iterdir()] == ["a.zip"]


def test_a_folder_is_read_without_its_links(tmp_path: Path) -> None:
    folder = exports.slack_folder(tmp_path / "slack")
    (folder / "general" / "2024-03-17.json").symlink_to("/dev/zero")
    (folder / "round").symlink_to(folder)
    assert turns(folder, "slack", "U2") == EXPECTED["slack"]


def test_too_many_files_are_no_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MOST_MEMBERS", 3)
    with pytest.raises(UserError, match="holds more than 3 files, which no export has"):
        turns(exports.slack_folder(tmp_path / "slack"), "slack", "U2")


def test_a_pipe_and_a_missing_file_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="pipe: is not an ordinary file"):
        Source(tmp_path / "pipe")
    with pytest.raises(UserError, match="none: there is no such file"):
        Source(tmp_path / "none")


def test_a_folder_that_is_no_export_of_slack_is_told(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no channel with a file a day \(channel/2024-03-04.json\)"):
        turns(tmp_path, "slack")


@pytest.mark.parametrize(
    "text",
    [
        "Hello\nworld\n",
        "2024-03-13 10:05:00 - INFO: started\n2024-03-13 10:05:01 - INFO: ended\n",
        "[2024-03-13 10:05:00] INFO: started\n[2024-03-13 10:05:01] INFO: ended\n",
        "Notes of\n13/03/2024, 10:05 - Ann: hi\n13/03/2024, 10:06 - Ben: hi\n",
        "question,answer\na,b\n",
        json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        json.dumps([{"instruction": "a", "output": "b"}]),
        json.dumps([{"title": "a", "text": "mapping current_node uuid chat_messages"}]),
        json.dumps({"name": "a", "type": "chat", "id": 1, "messages": [{"role": "user", "content": "a"}]}),
    ],
)
def test_what_is_not_surely_an_export_is_none(text: str, tmp_path: Path) -> None:
    (tmp_path / "a").write_text(text, "utf-8")
    assert chats.kind_of(tmp_path / "a") == ""
