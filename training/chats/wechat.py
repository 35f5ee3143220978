"""Chats of WeChat as tables (CSV), in the forms of its common exporters: MemoTrace, PyWxDump and WeClone, WeFlow, chatlog."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from training.chats import dates
from training.chats import messages as kinds
from training.chats.dates import Stamp
from training.chats.fields import fields, seconds, text
from training.chats.messages import Chat, Left, Message, in_order
from training.chats.opening import Member
from training.errors import UserError

WIDEST = 16 << 20  # characters of a cell


@dataclass(frozen=True, kw_only=True)
class Form:
    """Which column of a form holds what. `chat`: which chat it is; `mine`: 1 for what the owner wrote."""

    known: frozenset[str]
    text: str
    time: str
    kind: str = ""
    mine: str = ""
    who: tuple[str, ...] = ()
    chat: tuple[str, ...] = ()


FORMS = (
    Form(
        known=frozenset({"TalkerId", "Type", "IsSender", "StrContent"}),
        text="StrContent", time="CreateTime", kind="Type", mine="IsSender",
        who=("Remark", "NickName", "Sender"), chat=("TalkerId",),
    ),
    Form(
        known=frozenset({"type_name", "is_sender", "talker", "CreateTime"}),
        text="msg", time="CreateTime", kind="type_name", mine="is_sender", who=("talker",), chat=("room_name",),
    ),
    Form(
        known=frozenset({"类型", "发送人", "时间", "内容"}),
        text="内容", time="时间", kind="类型", who=("发送人", "备注", "昵称"),
    ),
    Form(
        known=frozenset({"Time", "SenderName", "Sender", "Talker", "Content"}),
        text="Content", time="Time", who=("SenderName", "Sender"), chat=("Talker",),
    ),
)  # fmt: skip
TEXT_KINDS = frozenset(
    {"1", "文本", "文字", "文本消息", "text", "引用", "引用消息", "带有引用的文本消息", "quote", "引用回复"}
)
SYSTEM_KINDS = frozenset(
    {"10000", "10002", "系统", "系统消息", "系统通知", "拍一拍", "撤回消息", "system", "50", "通话"}
)
# Alone in a message it stands for what is no text. [捂脸] and the like are little pictures of the writer's.
MEDIA = re.compile(
    r"!?\[(?:图片|照片|视频|短视频|语音|语音通话|视频通话|动画表情|表情包|表情|文件|链接|名片|位置|红包|微信红包|转账|聊天记录"
    r"|合并转发|小程序|音乐|视频号|image|video|voice|file|sticker|emoji)(?:[|:：][^\]\n]*)?\](?:\([^)\n]*\))?"
)
QUOTED = re.compile(r"\s*\[引用[^\n]*?[:：].*\]\s*\Z", re.DOTALL)
RECALLED = re.compile(r"(?:.{1,40} )?(?:你|您)?撤回了一条消息.{0,10}|.{1,60} recalled a message\.?", re.DOTALL)


def form_of(names: Sequence[str]) -> Form | None:
    """The form whose columns a table has."""
    there = {name.strip().lstrip("\ufeff") for name in names}
    return next((form for form in FORMS if form.known <= there), None)


def is_wechat(head: str) -> bool:
    """Whether a table that begins like this is one of FORMS."""
    first = head.lstrip("\ufeff").partition("\n")[0].rstrip("\r")
    return form_of(first.replace('"', "").split(",")) is not None


def read(member: Member, left: Left, order: str | None = None, encoding: str = "auto") -> list[Chat]:
    """The chats of a table. `order`: of day, month and year, where a program saved it again in its locale's way.

    UserError where its columns are those of no known form, where it cannot be read, or its dates in two ways.
    """
    csv.field_size_limit(WIDEST)
    reader = csv.reader(io.StringIO(member.text(encoding), newline=""))
    names = [name.strip().lstrip("\ufeff") for name in next(reader, [])]
    form = form_of(names)
    if form is None:
        known = "; ".join(", ".join(sorted(one.known)) for one in FORMS)
        raise UserError(f"{member.place()}:1: the columns are of no exporter that is known here, which have: {known}")
    chats: dict[str, Chat] = {}
    stamps: dict[int, Stamp] = {}
    for line, row in _rows(reader, names, member):
        written = row.get(form.time, "")
        if seconds(written.strip()) is None and (stamp := dates.of_text(written)):
            stamps[line] = stamp
        chat = next((row[name] for name in form.chat if row.get(name)), "")
        if message := _message(row, form, line, left):
            chats.setdefault(chat, Chat(name=chat or member.name, messages=[])).messages.append(message)
    times = _times(stamps, order, member)
    for one in chats.values():
        if times:
            one.messages = [replace(each, time=times.get(each.line, each.time)) for each in one.messages]
        # A table of all chats has each by itself; one by a database may not stand in the order of time.
        one.messages = in_order(one.messages, one.name, left)
    return list(chats.values())


def _times(stamps: Mapping[int, Stamp], order: str | None, member: Member) -> dict[int, float | None]:
    """Line -> the moment of a date such as 01/02/2026 10:05, by all of them together."""
    if not stamps:
        if order:
            raise UserError(f"--date-order {order}: {member.place()} says itself which is the day")
        return {}
    every = list(stamps.values())
    chosen = order or dates.order_of(every, f"{member.place()}:{next(iter(stamps))}")
    if chosen is None:
        return {}
    return dict(zip(stamps, dates.moments(every, chosen, member.place(), given=order is not None), strict=True))


def _rows(reader: Iterator[list[str]], names: list[str], member: Member) -> Iterator[tuple[int, dict[str, str]]]:
    """Each row by the names of its columns, and its line. More cells than names are what one exporter writes."""
    number = getattr(reader, "line_num", 1)
    while True:
        line = number + 1
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(f"{member.place()}:{line}: is no row of a table: {error}") from None
        number = getattr(reader, "line_num", line)
        if row is None:
            return
        if any(cell.strip() for cell in row):
            yield line, dict(zip(names, row, strict=False))


def _message(row: Mapping[str, str], form: Form, line: int, left: Left) -> Message | None:
    said, kind = _content(row, form), row.get(form.kind, "").strip()
    why = ""
    if RECALLED.fullmatch(said.strip()):
        why = kinds.DELETED
    elif kind in SYSTEM_KINDS:
        why = kinds.SYSTEM
    elif form.kind and kind not in TEXT_KINDS and not (kind == "49" and row.get("SubType", "").strip() == "57"):
        why = kinds.MEDIA
    said = QUOTED.sub("", said).strip()
    # What a quotation and a card are kept in is of no use to anybody.
    if not why and (not said or MEDIA.fullmatch(said) or said.startswith(("<msg>", "<?xml", "<sysmsg"))):
        why = kinds.MEDIA
    if why:
        left.counts[why] += 1
        return None
    names = [name for one in form.who if (name := row.get(one, "").strip())]
    mine = row.get(form.mine, "").strip() in ("1", "True", "true") if form.mine else None
    who = names[0] if names else ("me" if mine else "")
    return Message(
        who=who or "?",
        text=said,
        time=seconds(row.get(form.time, "").strip()),
        line=line,
        mine=mine,
        other=tuple(names[1:]),
    )


def _content(row: Mapping[str, str], form: Form) -> str:
    """What a message says; in an older form it is an object in the cell."""
    if form.text in row:
        return text(row[form.text])
    written = text(row.get("content", ""))
    if written.lstrip().startswith("{"):
        try:
            return text(fields(json.loads(written)).get("msg"))
        except (ValueError, RecursionError):
            return written
    return written
