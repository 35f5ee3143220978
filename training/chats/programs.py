"""Exports of Telegram, Discord (by DiscordChatExporter) and Slack: JSON, each in its own shape."""

from __future__ import annotations

import html
import re

from training.chats import fields as kinds_of
from training.chats import messages as kinds
from training.chats.fields import Fields, objects, seconds, text
from training.chats.messages import Chat, Left, Message, in_order
from training.chats.opening import Member, Source
from training.errors import UserError

# ---- Telegram ----------------------------------------------------------------------------------------------------

ALONE = ("saved_messages", "public_channel", "private_channel", "verify_codes", "replies", "bot_chat")


def is_telegram(found: object) -> bool:
    """Whether JSON is what Telegram Desktop exports: one chat, or all of an account."""
    held = kinds_of.fields(found)
    lists = kinds_of.fields(held.get("chats")).get("list")
    return isinstance(lists, list) or (
        isinstance(held.get("messages"), list) and "type" in held and "id" in held and "name" in held
    )


def telegram(found: object, left: Left) -> list[Chat]:
    """The chats between people of a result.json; channels, bots and the notes to oneself are left out, and named."""
    held = kinds_of.fields(found)
    listed = list(objects(kinds_of.fields(held.get("chats")).get("list")))
    listed += objects(kinds_of.fields(held.get("left_chats")).get("list"))
    account = kinds_of.fields(held.get("personal_information"))
    mine = f"user{account['user_id']}" if "user_id" in account else ""
    chats = []
    alone: dict[str, int] = {}
    for one in listed or [held]:
        if one.get("type") in ALONE:
            alone[text(one.get("type"))] = alone.get(text(one.get("type")), 0) + 1
            continue
        messages = [made for message in objects(one.get("messages")) if (made := _of_telegram(message, mine, left))]
        name = text(one.get("name"))
        partner = name if one.get("type") == "personal_chat" else ""
        chats.append(Chat(name=name, messages=in_order(messages, name, left), partner=partner))
    left.notes += [f"{count:,} of type {kind} left out: nobody answers there" for kind, count in alone.items()]
    return chats


def _of_telegram(message: Fields, mine: str, left: Left) -> Message | None:
    if message.get("type") != "message":
        left.counts[kinds.SYSTEM] += 1
        return None
    if "forwarded_from" in message or "saved_from" in message:
        left.counts[kinds.FORWARDED] += 1
        return None
    if message.get("via_bot"):
        left.counts[kinds.BOTS] += 1
        return None
    said = _entities(message.get("text")) or _entities(message.get("text_entities"))
    if not said.strip():
        left.counts[kinds.MEDIA] += 1
        return None
    left.edited += "edited" in message
    number = message.get("from_id")
    number = f"user{number}" if isinstance(number, int) else text(number)
    at = seconds(message.get("date_unixtime"))
    return Message(
        who=text(message.get("from")) or number or "Deleted Account",
        text=said,
        time=at if at is not None else seconds(message.get("date")),
        line=_whole(message.get("id")),
        mine=number == mine if mine else None,
        other=(number, number.removeprefix("user")),
    )


def _entities(value: object) -> str:
    """A text, or the pieces of one: plain, or with what they are (a link, bold)."""
    if isinstance(value, list):
        return "".join(one if isinstance(one, str) else text(kinds_of.fields(one).get("text")) for one in value)
    return text(value)


# ---- Discord -----------------------------------------------------------------------------------------------------

WRITTEN = ("Default", "Reply", "0", "19")


def is_discord(found: object) -> bool:
    """Whether JSON is a channel as DiscordChatExporter writes it."""
    held = kinds_of.fields(found)
    return {"guild", "channel", "messages"} <= held.keys() and isinstance(held["messages"], list)


def discord(found: object, left: Left) -> list[Chat]:
    """The one channel of a file."""
    held = kinds_of.fields(found)
    messages = []
    for number, message in enumerate(objects(held.get("messages")), 1):
        author = kinds_of.fields(message.get("author"))
        said = text(message.get("content"))
        why = ""
        if author.get("isBot") is True:
            why = kinds.BOTS
        elif str(message.get("type")) not in WRITTEN:
            why = kinds.SYSTEM
        elif not said.strip():
            why = kinds.MEDIA
        if why:
            left.counts[why] += 1
            continue
        left.edited += bool(message.get("timestampEdited"))
        name, nick = text(author.get("name")), text(author.get("nickname"))
        whole = f"{name}#{text(author.get('discriminator'))}"
        messages.append(
            Message(
                who=nick or name or text(author.get("id")),
                text=said,
                time=seconds(message.get("timestamp")),
                line=number,
                other=(name, whole, text(author.get("id"))),
            )
        )
    name = text(kinds_of.fields(held.get("channel")).get("name"))
    # The exporter can be told to begin with the newest.
    return [Chat(name=name, messages=in_order(messages, name, left))]


# ---- Slack -------------------------------------------------------------------------------------------------------

OF_PEOPLE = (None, "", "thread_broadcast", "me_message", "file_share", "file_comment")
MARKED = re.compile(r"<([@#!]?)([^<>|]*)(?:\|([^<>]*))?>")
DAY = re.compile(r"(?:.*/)?([^/]+)/\d{4}-\d{2}-\d{2}(?:-\d+)?\.json")


def is_slack(source: Source) -> bool:
    """Whether a folder or zip file has people, and channels with a file a day."""
    names = [member.name for member in source.members(".json")]
    return any(name.rsplit("/", 1)[-1] == "users.json" for name in names) and any(map(DAY.fullmatch, names))


def slack(source: Source, left: Left) -> list[Chat]:
    """Each channel, and each thread by itself, for those that write in one answer each other."""
    members = source.members(".json")
    people: dict[str, tuple[str, ...]] = {}
    channels: dict[str, str] = {}
    days: dict[str, list[Member]] = {}
    for member in members:
        base = member.name.rsplit("/", 1)[-1]
        if day := DAY.fullmatch(member.name):
            days.setdefault(day[1], []).append(member)
        elif base == "users.json":
            people |= _people(member)
        elif base in ("channels.json", "groups.json", "dms.json", "mpims.json"):
            channels |= {text(one.get("id")): text(one.get("name")) for one in objects(member.json())}
    if not days:
        raise UserError(
            f"{source.path}: holds no channel with a file a day (channel/2024-03-04.json), as Slack exports them"
        )
    found = []
    for channel, files in sorted(days.items()):
        flow: list[Message] = []
        threads: dict[str, list[Message]] = {}
        for message in (one for member in files for one in objects(member.json())):
            made = _of_slack(message, people, channels, left)
            if made is None:
                continue
            thread = text(message.get("thread_ts"))
            (threads.setdefault(thread, []) if thread else flow).append(made)
        found.append(Chat(name=channel, messages=in_order(flow, channel, left)))
        for answered in threads.values():
            found.append(Chat(name=channel, messages=in_order(answered, channel, left), whole=True))
    return found


def _people(member: Member) -> dict[str, tuple[str, ...]]:
    """Of each user the names, the one that is shown first."""
    found = {}
    for user in objects(member.json()):
        profile = kinds_of.fields(user.get("profile"))
        names = [text(profile.get(name)) for name in ("display_name", "real_name", "email")]
        names += [text(user.get("real_name")), text(user.get("name"))]
        found[text(user.get("id"))] = tuple(dict.fromkeys(name for name in names if name))
    return found


def _of_slack(
    message: Fields, people: dict[str, tuple[str, ...]], channels: dict[str, str], left: Left
) -> Message | None:
    subtype = message.get("subtype")
    why = ""
    if subtype == "tombstone" or message.get("hidden") is True:
        why = kinds.DELETED
    elif subtype == "bot_message" or message.get("bot_id"):
        why = kinds.BOTS
    elif message.get("type") != "message" or subtype not in OF_PEOPLE:
        why = kinds.SYSTEM
    elif not text(message.get("text")).strip():
        why = kinds.MEDIA
    if why:
        left.counts[why] += 1
        return None
    user = text(message.get("user"))
    profile = kinds_of.fields(message.get("user_profile"))
    names = people.get(user) or tuple(filter(None, (text(profile.get(one)) for one in ("display_name", "real_name"))))
    left.edited += "edited" in message
    return Message(
        who=names[0] if names else user,
        text=_plain(text(message.get("text")), people, channels),
        time=seconds(message.get("ts")),
        line=int(seconds(message.get("ts")) or 0),
        other=(*names[1:], user),
    )


def _plain(said: str, people: dict[str, tuple[str, ...]], channels: dict[str, str]) -> str:
    """Slack's text as its reader sees it: names for numbers, and & < > as they are."""

    def shown(match: re.Match[str]) -> str:
        sign, what, label = match[1], match[2], match[3] or ""
        if sign == "@":
            return f"@{(people.get(what) or (label or what,))[0]}"
        if sign == "#":
            return f"#{label or channels.get(what) or what}"
        if sign == "!":
            return label or f"@{what.partition('^')[0]}"
        return label or what.removeprefix("mailto:")

    return html.unescape(MARKED.sub(shown, said))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
