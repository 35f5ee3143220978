"""The table of settings, as the page makes a form of it and the OpenAPI document describes a body."""

from __future__ import annotations

import functools
import re
from typing import Any

from pydantic import BaseModel

from training.service.asked import FIELDS, OF_THE_SERVER
from training.settings import Settings, rules
from training.settings.table import TABLE, Item
from training.system import paths


class Field(BaseModel):
    """One setting: its field in a request, what it may be, and its value in the server's file as text."""

    name: str
    section: str
    key: str
    help: str
    allowed: str
    kind: str
    value: str
    choices: list[str]


@functools.cache
def chinese() -> dict[str, tuple[str, str]]:
    """What each setting may be and what it is for, in Chinese: the page of the settings has it, and a test holds that to
    the table."""
    page = (paths.ROOT / "docs" / "settings.zh-CN.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([A-Z0-9_]+)` \| [^|]* \| ([^|]*) \| (.+) \|$", page, re.MULTILINE)
    return {key: (allowed, text) for key, allowed, text in rows}


def fields(own: Settings, language: str) -> list[Field]:
    """Every setting that a request may say; `language`: en or zh."""
    texts = chinese() if language == "zh" else {}
    found = []
    for key, item in TABLE.items():
        if key in OF_THE_SERVER:
            continue
        allowed, text = texts.get(item.key, (rules.allowed(item.rule, item.kind), item.rule.help))
        found.append(
            Field(
                name=item.key.lower(),
                section=item.section,
                key=item.key,
                help=text,
                allowed=allowed,
                kind=item.kind,
                value=rules.write(own.get(key)),
                choices=_choices(item),
            )
        )
    return found


def _choices(item: Item) -> list[str]:
    if item.kind == "bool":
        return ["true", "false"]
    if item.kind == "bool | Auto":
        return ["auto", "true", "false"]
    if item.kind == "bool | Auto | Int8":
        return ["auto", "true", "false", "int8"]
    return list(item.rule.one_of) if item.name != "Hardware.DEVICE" else []


def _schema(item: Item) -> dict[str, Any]:
    kinds = {"int": "integer", "float": "number", "bool": "boolean"}
    schema: dict[str, Any] = {"description": f"[{item.section}] {item.key}: {item.rule.help}"}
    if item.kind in kinds:
        schema["type"] = kinds[item.kind]
    elif item.kind == "tuple[str, ...]":
        schema["type"] = ["array", "string"]
        schema["items"] = {"type": "string"}
    else:
        schema["type"] = ["string", "integer", "boolean", "null"]
    if item.rule.at_least is not None and item.kind in kinds:
        schema["minimum"] = item.rule.at_least
    return schema


PROPERTIES = {name: _schema(TABLE[key]) for name, key in FIELDS.items() if key not in OF_THE_SERVER}
BODY = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"type": "object", "properties": PROPERTIES}}},
    }
}
