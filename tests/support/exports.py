"""Exports as the programs write them, small: for the tests of their readers and of what reads them."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

WHATSAPP = (
    "13/03/2024, 10:05 - Messages and calls are end-to-end encrypted. Tap to learn more.\n"
    "13/03/2024, 10:05 - Anna: Hi Ben, are you there?\n"
    "13/03/2024, 10:06 - Ben: yo\n"
    "13/03/2024, 10:06 - Ben: what's up\n"
    "13/03/2024, 10:07 - Anna: <Media omitted>\n"
    "13/03/2024, 10:08 - Anna: look\n"
    "13/03/2024, 10:09 - Ben: nice!!\n"
    "14/03/2024, 10:09 - Anna: dinner?\n"
    "14/03/2024, 10:10 - Ben: yo, sure <This message was edited>\n"
)


def telegram_message(number: int, who: str, user: int, text: object, minute: int, **more: object) -> dict:
    return {
        "id": number, "type": "message", "date": f"2024-03-13T10:{minute:02}:00",
        "date_unixtime": str(1710324000 + 60 * minute), "from": who, "from_id": f"user{user}", "text": text,
        "text_entities": [], **more,
    }  # fmt: skip


TELEGRAM = {
    "name": "Anna",
    "type": "personal_chat",
    "id": 4711,
    "messages": [
        {
            "id": 1,
            "type": "service",
            "date": "2024-03-13T10:00:00",
            "actor": "Anna",
            "action": "phone_call",
            "text": "",
        },
        telegram_message(2, "Anna", 11, "Hi, see ", 1),
        telegram_message(3, "Anna", 11, ["this ", {"type": "link", "text": "https://a.example"}, " here"], 2),
        telegram_message(4, "Ben", 12, "yo", 3, edited="2024-03-13T11:00:00", reply_to_message_id=3),
        telegram_message(5, "Anna", 11, "", 4, media_type="sticker", sticker_emoji="🦊"),
        telegram_message(6, "Anna", 11, "not mine", 4, forwarded_from="News"),
        telegram_message(7, "Anna", 11, "photo words", 5, photo="(File not included.)"),
        telegram_message(8, "Ben", 12, "nice", 6),
    ],
}
TELEGRAM_ACCOUNT = {
    "about": "Here is the data you requested.",
    "personal_information": {"user_id": 12, "first_name": "Ben"},
    "chats": {
        "about": "",
        "list": [
            TELEGRAM,
            {"name": None, "type": "saved_messages", "id": 1, "messages": [telegram_message(1, "Ben", 12, "note", 1)]},
            {"name": "News", "type": "public_channel", "id": 2, "messages": []},
        ],
    },
}


def discord_message(number: int, who: str, text: str, minute: int, **more: object) -> dict:
    author = {"id": f"9{who}", "name": who.lower(), "discriminator": "0000", "nickname": who, "isBot": False}
    return {
        "id": str(number), "type": "Default", "timestamp": f"2024-03-13T10:{minute:02}:00.123+00:00",
        "timestampEdited": None, "isPinned": False, "content": text, "author": author, "attachments": [], **more,
    }  # fmt: skip


DISCORD = {
    "guild": {"id": "0", "name": "Club", "iconUrl": ""},
    "channel": {"id": "5", "type": "GuildTextChat", "name": "general", "topic": None},
    "dateRange": {"after": None, "before": None},
    "exportedAt": "2024-05-01T00:00:00+00:00",
    "messages": [
        discord_message(1, "Anna", "who comes?", 1),
        discord_message(2, "Cem", "not me", 2),
        discord_message(3, "Ben", "yo me", 3, type="Reply", timestampEdited="2024-03-13T10:05:00+00:00"),
        discord_message(4, "Cem", "", 4, attachments=[{"id": "1", "fileName": "a.png"}]),
        discord_message(5, "Cem", "Cem joined", 5, type="GuildMemberJoin"),
        {**discord_message(6, "Bot", "beep", 6), "author": {"id": "1", "name": "bot", "isBot": True}},
    ],
    "messageCount": 6,
}


def chatgpt_node(number: int, parent: int | None, role: str, text: str, children: list[int], **more: object) -> dict:
    message = {
        "id": f"m{number}", "author": {"role": role, "name": None}, "create_time": 1710324000.5 + number,
        "content": {"content_type": "text", "parts": [text]}, "weight": 1.0, "recipient": "all", "metadata": {},
    } | more  # fmt: skip
    up = None if parent is None else f"n{parent}"
    return {"id": f"n{number}", "message": message, "parent": up, "children": [f"n{one}" for one in children]}


CHATGPT = [
    {
        "title": "Rome",
        "create_time": 1710324000.0,
        "mapping": {
            "n0": {"id": "n0", "message": None, "parent": None, "children": ["n1"]},
            "n1": chatgpt_node(1, 0, "system", "", [2], metadata={"is_visually_hidden_from_conversation": True}),
            "n2": chatgpt_node(2, 1, "user", "When was Rome founded?", [3, 4]),
            "n3": chatgpt_node(3, 2, "assistant", "In 700.", []),
            "n4": chatgpt_node(4, 2, "assistant", "In 753 BC \ue200cite\ue202turn0search3\ue201.", [5]),
            "n5": chatgpt_node(5, 4, "user", "Who says so?", [6]),
            "n6": chatgpt_node(6, 5, "assistant", "search('Varro')", [7], recipient="browser"),
            "n7": chatgpt_node(7, 6, "tool", "found", [8]),
            "n8": chatgpt_node(8, 7, "assistant", "Varro【3†source】.", []),
        },
        "current_node": "n8",
        "conversation_id": "c1",
    },
    {
        "title": "never answered",
        "mapping": {"n2": chatgpt_node(2, None, "user", "Hello?", [])},
        "current_node": "n2",
        "conversation_id": "c2",
    },
]
CLAUDE = [
    {
        "uuid": "u1",
        "name": "Oslo",
        "created_at": "2024-03-13T10:00:00.123456Z",
        "account": {"uuid": "a"},
        "chat_messages": [
            {
                "uuid": "1", "text": "Sum it up.", "sender": "human", "created_at": "2024-03-13T10:00:00.123456Z",
                "content": [{"type": "text", "text": "Sum it up."}], "files": [],
                "attachments": [{"file_name": "paste.txt", "extracted_content": "Oslo is large."}],
            },
            {
                "uuid": "2", "text": "", "sender": "assistant", "created_at": "2024-03-13T10:00:09Z",
                "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "Oslo: large."}],
                "attachments": [], "files": [],
            },
        ],
    }
]  # fmt: skip
OPENWEBUI = [
    {
        "id": "1",
        "user_id": "2",
        "title": "Tea",
        "chat": {
            "title": "Tea",
            "models": ["llama3"],
            "params": {"system": "Be short."},
            "history": {
                "currentId": "c",
                "messages": {
                    "a": {"id": "a", "parentId": None, "childrenIds": ["b", "c"], "role": "user", "content": "How hot?"},
                    "b": {"id": "b", "parentId": "a", "childrenIds": [], "role": "assistant", "content": "60."},
                    "c": {
                        "id": "c", "parentId": "a", "childrenIds": [], "role": "assistant", "timestamp": 1710324000,
                        "content": '<details type="reasoning" done="true">\n<summary>Thought</summary>\nhm\n</details>\n80 °C.',
                    },
                },
            },
            "messages": [],
        },
    }
]  # fmt: skip
SLACK = {
    "users.json": [
        {"id": "U1", "name": "anna", "profile": {"real_name": "Anna A", "display_name": ""}},
        {"id": "U2", "name": "ben", "profile": {"real_name": "Ben B", "display_name": "Benny"}},
    ],
    "channels.json": [{"id": "C1", "name": "general"}],
    "general/2024-03-13.json": [
        {
            "type": "message",
            "subtype": "channel_join",
            "user": "U1",
            "text": "<@U1> has joined",
            "ts": "1710324000.000100",
        },
        {"type": "message", "user": "U1", "text": "<@U2> is it 1 &lt; 2 in <#C1|general>?", "ts": "1710324001.000100"},
        {"type": "message", "user": "U2", "text": "yo <https://a.example|here>", "ts": "1710324002.000100"},
        {
            "type": "message",
            "user": "U1",
            "text": "Plans?",
            "ts": "1710324003.000100",
            "thread_ts": "1710324003.000100",
        },
        {"type": "message", "subtype": "bot_message", "bot_id": "B1", "text": "beep", "ts": "1710324004.000100"},
    ],
    "general/2024-03-16.json": [
        {"type": "message", "user": "U2", "text": "none", "ts": "1710583204.000100", "thread_ts": "1710324003.000100"},
        {
            "type": "message",
            "subtype": "tombstone",
            "user": "U2",
            "text": "This message was deleted.",
            "ts": "1710583205.0",
        },
    ],
}
# MemoTrace writes one more cell than names.
WECHAT = (
    "\ufefflocalId,TalkerId,Type,SubType,IsSender,CreateTime,Status,StrContent,StrTime,Remark,NickName,Sender\r\n"
    "1,3,10000,0,0,1710324000,,以上是打招呼的内容,2024-03-13 18:00:00,安娜,Anna,wxid_a,99\r\n"
    '2,3,1,0,0,1710324001,,"在吗\n有事",2024-03-13 18:00:01,安娜,Anna,wxid_a,98\r\n'
    "3,3,1,0,1,1710324002,,在[捂脸],2024-03-13 18:00:02,,Ben,wxid_b,97\r\n"
    "4,3,3,0,0,1710324003,,<msg></msg>,2024-03-13 18:00:03,安娜,Anna,wxid_a,96\r\n"
    "5,4,1,0,0,1710324004,,别的聊天,2024-03-13 18:00:04,Cem,Cem,wxid_c,95\r\n"
    "6,4,1,0,1,1710324005,,好,2024-03-13 18:00:05,,Ben,wxid_b,94\r\n"
)


def as_json(path: Path, found: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(found, ensure_ascii=False, indent=1), "utf-8")
    return path


def slack_folder(folder: Path) -> Path:
    for name, found in SLACK.items():
        as_json(folder / name, found)
    return folder


def zipped(path: Path, **files: bytes) -> Path:
    """A zip file; the names of its members with __ for a dot and ___ for a slash."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name.replace("___", "/").replace("__", "."), content)
    return path


def every(folder: Path) -> dict[str, Path]:
    """An export of each program in a folder."""
    (folder / "chat.txt").write_text(WHATSAPP, "utf-8")
    (folder / "wechat.csv").write_text(WECHAT, "utf-8", newline="")
    return {
        "whatsapp": folder / "chat.txt",
        "telegram": as_json(folder / "result.json", TELEGRAM),
        "chatgpt": as_json(folder / "gpt" / "conversations.json", CHATGPT),
        "claude": as_json(folder / "claude" / "conversations.json", CLAUDE),
        "openwebui": as_json(folder / "chat-export-1.json", OPENWEBUI),
        "slack": slack_folder(folder / "slack"),
        "discord": as_json(folder / "Club - general [5].json", DISCORD),
        "wechat-csv": folder / "wechat.csv",
    }
