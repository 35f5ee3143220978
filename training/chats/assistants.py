"""Exports of ChatGPT, Claude and Open WebUI: conversations with an assistant, in which each message says whose it is.

A question that was edited and an answer that was asked for again are branches of a tree: read is the one that was shown last.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from training.chats import fields as kinds_of
from training.chats import messages as kinds
from training.chats.fields import Fields, objects, seconds, text
from training.chats.messages import Chat, Left, Message

LINKS = frozenset(("parent", "children"))
MOST_NODES = 100_000  # of one conversation
# References to what a search found, which ChatGPT writes between characters of its own: citeturn0search3; and 【12†L3】.
CITED = re.compile("\ue200[^\ue200\ue201]{0,400}\ue201|【\\d+(?::\\d+)?†[^【】\n]{0,200}】|[\ue200-\ue206]")
# Open WebUI folds thoughts and uses of tools into the answer.
FOLDED = re.compile(r"<details type=\"(?:reasoning|tool_calls|code_interpreter)\"[^>]*>.*?</details>\s*", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class _Said:
    """A message of a tree: whose it is ("" for nobody's that is learned), what it says, and why it says nothing.

    unseen: it was sent with what the export does not hold, an image or a file, so that nothing can be learned of an answer to it.
    """

    role: str
    text: str = ""
    time: float | None = None
    why: str = ""
    unseen: bool = False


def is_chatgpt(conversation: Fields) -> bool:
    """Whether an object is a conversation of ChatGPT's export."""
    nodes = conversation.get("mapping")
    if not isinstance(nodes, dict):
        return False
    if not nodes:
        return "current_node" in conversation
    # Other programs have a mapping and a title, too.
    return any(isinstance(one, dict) and "message" in one and not LINKS.isdisjoint(one) for one in nodes.values())


def is_claude(conversation: Fields) -> bool:
    """Whether an object is a conversation of Claude's export."""
    return isinstance(conversation.get("chat_messages"), list) and "uuid" in conversation


def is_openwebui(conversation: Fields) -> bool:
    """Whether an object is a conversation of Open WebUI's export."""
    chat = kinds_of.fields(conversation.get("chat"))
    return isinstance(kinds_of.fields(chat.get("history")).get("messages"), dict) or (
        isinstance(chat.get("messages"), list) and "models" in chat
    )


def chatgpt(conversation: Fields, number: int, left: Left) -> Chat:
    """The branch that ends at `current_node`; where there is none, the last one."""
    nodes = kinds_of.fields(conversation.get("mapping"))
    branch = _branch(nodes, conversation.get("current_node"), "parent", "children")
    said = (_of_chatgpt(kinds_of.fields(node.get("message"))) for node in branch)
    return _chat(text(conversation.get("title")), said, number, left)


def _of_chatgpt(message: Fields) -> _Said:
    role = text(kinds_of.fields(message.get("author")).get("role"))
    content, more = kinds_of.fields(message.get("content")), kinds_of.fields(message.get("metadata"))
    kind, at = text(content.get("content_type")), seconds(message.get("create_time"))
    if not message or role == "system":
        return _Said(role="")
    if more.get("is_visually_hidden_from_conversation") is True or more.get("is_user_system_message") is True:
        return _Said(role="", why=kinds.HIDDEN)
    if kind in ("thoughts", "reasoning_recap"):
        return _Said(role="", why=kinds.THOUGHTS)
    if role not in ("user", "assistant") or kind not in ("text", "multimodal_text"):
        return _Said(role="", why=kinds.TOOLS)
    if role == "assistant" and message.get("recipient") not in (None, "all"):
        return _Said(role="", why=kinds.TOOLS)
    parts = content.get("parts")
    held = parts if isinstance(parts, list) else []
    found = [text(part) if isinstance(part, str) else text(kinds_of.fields(part).get("text")) for part in held]
    said = CITED.sub("", "\n".join(part for part in found if part.strip()))
    unseen = role == "user" and (bool(more.get("attachments")) or any(_is_unseen(one) for one in objects(held)))
    return _Said(role=role, text=said, time=at, why=kinds.MEDIA if unseen or not said.strip() else "", unseen=unseen)


def _is_unseen(part: Fields) -> bool:
    """Whether a part of a message is an image or film, or anything else without a text; what was spoken is also written."""
    if part.get("video_container_asset_pointer") or part.get("frames_asset_pointers"):
        return True
    return "audio" not in text(part.get("content_type")) and not text(part.get("text")).strip()


def claude(conversation: Fields, number: int, left: Left) -> Chat:
    """The messages in their order; where they name their parents, the branch that ends with the last one."""
    messages = list(objects(conversation.get("chat_messages")))
    nodes = {text(one.get("uuid")): one for one in messages if one.get("uuid")}
    if messages and all(text(one.get("parent_message_uuid")) for one in messages) and len(nodes) == len(messages):
        last = text(conversation.get("current_leaf_message_uuid")) or text(messages[-1].get("uuid"))
        messages = _branch(nodes, last, "parent_message_uuid", "")
    return _chat(text(conversation.get("name")), map(_of_claude, messages), number, left)


def _of_claude(message: Fields) -> _Said:
    role = {"human": "user", "user": "user", "assistant": "assistant"}.get(text(message.get("sender")), "")
    blocks = list(objects(message.get("content")))
    said = "\n\n".join(
        found for one in blocks if one.get("type") == "text" and (found := text(one.get("text"))).strip()
    )
    said = said or ("" if blocks else text(message.get("text")))
    held, files = list(objects(message.get("attachments"))), list(objects(message.get("files")))
    read = {text(one.get("file_name")) for one in held if text(one.get("extracted_content")).strip()}
    for attached in held:
        if (content := text(attached.get("extracted_content"))).strip():
            said = f"{said}\n\n{content}".strip()
    unseen = role == "user" and (
        any(text(one.get("file_name")) not in read for one in (*held, *files))
        or any(one.get("type") in ("image", "document") for one in blocks)
    )
    why = "" if said.strip() else kinds.TOOLS if role == "assistant" and blocks else kinds.MEDIA
    at = seconds(message.get("created_at"))
    return _Said(role=role, text=said, time=at, why=kinds.MEDIA if unseen else why, unseen=unseen)


def openwebui(conversation: Fields, number: int, left: Left) -> Chat:
    """The branch that ends at `currentId`; of older exports, their list of messages."""
    chat = kinds_of.fields(conversation.get("chat"))
    history = kinds_of.fields(chat.get("history"))
    nodes = kinds_of.fields(history.get("messages"))
    branch: list[Fields] = _branch(nodes, history.get("currentId"), "parentId", "childrenIds") if nodes else []
    branch = branch or list(objects(chat.get("messages")))
    found = _chat(text(chat.get("title")) or text(conversation.get("title")), map(_of_openwebui, branch), number, left)
    found.system = found.system or text(kinds_of.fields(chat.get("params")).get("system")) or text(chat.get("system"))
    return found


def _of_openwebui(message: Fields) -> _Said:
    role, content = text(message.get("role")), message.get("content")
    said = text(content) if isinstance(content, str) else "\n".join(text(one.get("text")) for one in objects(content))
    if role not in ("user", "assistant"):
        return _Said(role="")
    said = FOLDED.sub("", said).strip()
    # What a file said is kept beside the chats, not in what was asked.
    unseen = role == "user" and (bool(message.get("files")) or any(map(_is_unseen, objects(content))))
    why = "" if said else kinds.TOOLS if role == "assistant" else kinds.MEDIA
    at = seconds(message.get("timestamp"))
    return _Said(role=role, text=said, time=at, why=kinds.MEDIA if unseen else why, unseen=unseen)


READERS = {"chatgpt": (is_chatgpt, chatgpt), "claude": (is_claude, claude), "openwebui": (is_openwebui, openwebui)}


def program_of(conversation: Fields) -> str:
    """Which of READERS reads an object; "" for none."""
    return next((kind for kind, (fits, _) in READERS.items() if fits(conversation)), "")


def read(found: object, kind: str, left: Left) -> list[Chat]:
    """All conversations of an export: a list of them, or one."""
    fits, reader = READERS[kind]
    every = list(objects(found)) or ([found] if isinstance(found, dict) else [])
    return [reader(one, number, left) for number, one in enumerate(every, 1) if fits(one)]


def _branch(nodes: Fields, end: object, up: str, down: str) -> list[Fields]:
    """The nodes from the root down to `end`; where that is not there, down to the last one's last child."""
    at: object = end
    if not isinstance(at, str) or at not in nodes:
        roots = [name for name, node in nodes.items() if kinds_of.fields(node).get(up) not in nodes]
        at, passed = (roots[0] if roots else None), set[str]()
        while isinstance(at, str) and at not in passed and len(passed) < MOST_NODES:
            passed.add(at)
            children = kinds_of.fields(nodes.get(at)).get(down)
            if not isinstance(children, list) or not children or children[-1] not in nodes:
                break
            at = children[-1]
    found: list[Fields] = []
    seen: set[str] = set()
    # A tree that leads into itself ends where it does.
    while isinstance(at, str) and at in nodes and at not in seen and len(seen) < MOST_NODES:
        seen.add(at)
        found.append(kinds_of.fields(nodes[at]))
        at = found[-1].get(up)
    return found[::-1]


def _chat(name: str, said: Iterable[_Said], number: int, left: Left) -> Chat:
    """A chat of what was said. A message that says nothing stays, empty: an answer to it is not learned."""
    messages = []
    for one in said:
        left.counts[one.why] += bool(one.why)
        if one.role and (one.text.strip() or one.role == "user"):
            # A question to what cannot be seen is none: as one that says nothing.
            text_ = "" if one.unseen else one.text.strip()
            messages.append(Message(who=one.role, text=text_, time=one.time, line=number, role=one.role))
    return Chat(name=name, messages=messages, whole=True)
