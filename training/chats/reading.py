"""Read an export of a chat program: which program's it is, its chats, whose they are, and the conversations in them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from training.chats import assistants, programs, wechat, whatsapp
from training.chats.conversations import Conversation, Cutting, conversations
from training.chats.messages import Chat, Left
from training.chats.opening import UTF16, Member, Source
from training.chats.picture import Picture
from training.chats.speakers import owner_of
from training.errors import UserError

NAMES = {
    "whatsapp": "WhatsApp",
    "telegram": "Telegram",
    "chatgpt": "ChatGPT",
    "claude": "Claude",
    "openwebui": "Open WebUI",
    "slack": "Slack",
    "discord": "Discord",
    "wechat-csv": "WeChat",
}
ROLES_KNOWN = ("chatgpt", "claude", "openwebui")
# What each is looked for in. Of a zip file or folder of media the rest is not looked at.
ENDINGS = {"whatsapp": (".txt",), "wechat-csv": (".csv",)}
CONVERSATIONS = re.compile(r"(?:.*/)?conversations(?:-\d+)?\.json", re.IGNORECASE)
# The first keys of the JSON that a program writes, by which it is known before all of it is read.
KEYS = {
    "chatgpt": (b'"mapping"', b'"current_node"'),
    "claude": (b'"chat_messages"', b'"uuid"'),
    "openwebui": (b'"chat"', b'"history"', b'"currentId"'),
    "discord": (b'"guild"', b'"channel"', b'"dateRange"'),
}


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """How an export is to be read: whose answers, in which order its dates are, in which encoding, and how it is cut."""

    my_names: Sequence[str] = ()
    date_order: str | None = None
    encoding: str = "auto"
    cutting: Cutting = field(default_factory=Cutting)


def kind_of(path: Path) -> str:
    """The program whose export a file or folder surely is, one of NAMES; "" where it is none, or not surely."""
    try:
        source = Source(path)
        if source.kind != "file":
            return _of_several(source)
        return of_head(source.read(path.name, 1 << 16))
    except UserError:  # who reads it, tells
        return ""


def of_head(head: bytes) -> str:
    """The program that a file is of which begins like this; "" where that is not sure."""
    text = head.decode("utf-16" if head.startswith(UTF16) else "utf-8", "ignore").lstrip("\ufeff")
    text = text if "\n" in text else text.replace("\r", "\n")
    begin = text.lstrip()
    if begin.startswith(("{", "[{")) or re.match(r"\[\s*\{", begin):
        return _of_json(head)
    if wechat.is_wechat(text):
        return "wechat-csv"
    return "whatsapp" if whatsapp.is_certain(text) else ""


def _of_json(head: bytes) -> str:
    bare = re.sub(rb"\s+", b"", head[:4096])
    if bare.startswith((b'{"about":', b'{"personal_information":')) and b'"chats"' in head[:4096] + head[-4096:]:
        return "telegram"
    if re.match(
        rb'\{"name":(?:"[^"]*"|null),"type":"[a-z_]+","id":-?\d+,"messages":\[(?:\]|\{"id":-?\d+,"type":")', bare
    ):
        return "telegram"
    if bare.startswith(b'{"guild":{') and b'"channel":{' in bare:
        return "discord"
    for kind, keys in KEYS.items():
        if kind != "discord" and all(key in head for key in keys):
            return kind
    return ""


def _of_several(source: Source) -> str:
    """The program of a folder or zip file, by what it holds."""
    for member in source.members(".json"):
        if CONVERSATIONS.fullmatch(member.name) and (kind := of_head(member.head())):
            return kind
        if member.name.rsplit("/", 1)[-1] == "result.json" and of_head(member.head()) == "telegram":
            return "telegram"
    if programs.is_slack(source):
        return "slack"
    found = {of_head(member.head()) for member in source.members(".txt", ".json", ".csv")[:200]} - {""}
    return found.pop() if len(found) == 1 else ""


def read(path: Path, kind: str, wanted: Wanted) -> tuple[Iterator[Conversation], Picture]:
    """The conversations of an export, and the picture of it, which is whole when the last of them was taken.

    UserError where it cannot be read, or where it does not say what must be known: whose answers, which day.
    """
    if kind in ROLES_KNOWN and wanted.my_names:
        raise UserError(
            f"--my-name {wanted.my_names[0]}: an export of {NAMES[kind]} says itself who answers; leave it out"
        )
    if wanted.date_order and kind not in ("whatsapp", "wechat-csv"):
        raise UserError(f"--date-order {wanted.date_order}: an export of {NAMES[kind]} says itself which is the day")
    source, left = Source(path), Left()
    chats = [chat for chat in _chats(source, kind, wanted, left) if chat.messages]
    if not chats:
        said = f" (left out: {left.said()})" if left.said() else ""
        raise UserError(f"{path}: no message of a person's in this export of {NAMES[kind]}{said}")
    owner = frozenset[str]() if kind in ROLES_KNOWN else owner_of(chats, wanted.my_names, str(path))
    picture = Picture(path=path, program=NAMES[kind], chats=chats, owner=owner, left=left, cutting=wanted.cutting)
    return _conversations(chats, owner, wanted.cutting, picture), picture


def _conversations(
    chats: Sequence[Chat], owner: frozenset[str], cutting: Cutting, picture: Picture
) -> Iterator[Conversation]:
    for chat in chats:
        for found in conversations(chat, owner, cutting, picture.unused):
            picture.add(found)
            yield found


def _chats(source: Source, kind: str, wanted: Wanted, left: Left) -> list[Chat]:
    if kind == "slack":
        return programs.slack(source, left)
    members = (
        source.members(*ENDINGS.get(kind, (".json",))) if source.kind != "file" else [Member(source.path.name, source)]
    )
    if not members:
        endings = " or ".join(ENDINGS.get(kind, (".json",)))
        raise UserError(f"{source.path}: holds no file that ends in {endings}, as an export of {NAMES[kind]} does")
    if kind == "whatsapp":
        return [
            chat
            for one in _texts(members, source)
            for chat in whatsapp.read(one, left, wanted.date_order, wanted.encoding)
        ]
    if kind == "wechat-csv":
        return [chat for one in members for chat in wechat.read(one, left, wanted.date_order, wanted.encoding)]
    return [chat for one in _whole(members, kind) for chat in _of_member(one, kind, source, left)]


def _of_member(member: Member, kind: str, source: Source, left: Left) -> list[Chat]:
    held = member.json()
    if kind == "telegram" and programs.is_telegram(held):
        return programs.telegram(held, left)
    if kind == "discord" and programs.is_discord(held):
        return programs.discord(held, left)
    if kind in ROLES_KNOWN and (found := assistants.read(held, kind, left)):
        return found
    if source.kind == "file":
        raise UserError(f"{member.place()}: is no export of {NAMES[kind]}: it holds none of its conversations")
    return []


def _whole(members: list[Member], kind: str) -> list[Member]:
    """Of the JSON files of an export those that hold its messages."""
    if kind in ("chatgpt", "claude"):
        return [one for one in members if CONVERSATIONS.fullmatch(one.name)] or members
    if kind == "telegram":
        return [one for one in members if one.name.rsplit("/", 1)[-1] == "result.json"] or members
    return members


def _texts(members: list[Member], source: Source) -> list[Member]:
    """The chats among the text files of an export: a message may have been sent with one."""
    if source.kind == "file":
        return members
    own = [one for one in members if one.name.rsplit("/", 1)[-1] == "_chat.txt"]
    return own or [one for one in members if of_head(one.head()) == "whatsapp"]
