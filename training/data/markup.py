"""Texts in which a conversation is written out: as `User: ...`, or in the chat markup of a model."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from training.data.turns import Turn
from training.data.values import Bad
from training.system.wording import shorten

WRITTEN_TURN = re.compile(r"^(系统|System|用户|User|Human|助手|Assistant)[:：][ \t]?", re.MULTILINE)
WRITTEN_ROLES = {"系统": "system", "System": "system", "助手": "assistant", "Assistant": "assistant"}


def written_turns(text: str) -> list[Turn] | None:
    """The turns of a text written as `User: ...` / `Assistant: ...` (or 用户 / 助手); None for any other text.

    Only a text that starts with a role and holds an answer counts: prose may well have a line that begins with "User:".
    """
    text = text.strip()
    marks = list(WRITTEN_TURN.finditer(text))
    roles = [WRITTEN_ROLES.get(mark[1], "user") for mark in marks]
    if not marks or marks[0].start() != 0 or "assistant" not in roles or "user" not in roles:
        return None
    return _between(text, marks, roles)


def _between(text: str, marks: list[re.Match[str]], roles: list[str]) -> list[Turn]:
    """The turns whose beginnings are marked."""
    ends = [mark.start() for mark in marks[1:]] + [len(text)]
    return [Turn(role, text[mark.end() : end].strip()) for role, mark, end in zip(roles, marks, ends, strict=True)]


# What a speaker would say in a line of their own; a line of a system is often one of another kind.
SPOKEN = re.compile(r"\s*(?:用户|User|Human|助手|Assistant)[:：]")
# The halves of an exchange, which a TXT file may have on a line each.
QUESTION, REPLY = (
    re.compile(rf"^[ \t]*(?:{names})[:：]", re.MULTILINE)
    for names in ("Q|Question|问|问题|問|問題", "A|Answer|答|回答|答案")
)
ASKED = ("助手:", "助手：", "Assistant:", "Assistant：")  # the last line of a prompt that is written as turns


def written_prompt(asked: str, answer: str) -> list[Turn] | None:
    """The turns of a prompt that is written as turns up to where the answer begins, and that answer; None for another."""
    found = written_turns(asked) if asked.rstrip().rpartition("\n")[2].strip() in ASKED else None
    return [*found[:-1], Turn("assistant", answer.strip())] if found else None


def half(text: str) -> str:
    """The mark of a question or an answer that a text begins with, where it holds no exchange; "" for all others."""
    begun = QUESTION.match(text) or REPLY.match(text)
    return begun[0].strip() if begun and not (QUESTION.search(text) and REPLY.search(text)) else ""


# What begins a turn in the markup of a model, and nothing else.
PART = re.compile(
    r"(?:<s>|<bos>|<BOS_TOKEN>|<\|begin_of_text\|>|<｜begin▁of▁sentence｜>|\[gMASK\]|<sop>|\s)*"
    r"(<\|im_start\|>|<\|start_header_id\|>|<\|header_start\|>|<start_of_turn>|<\|start_of_role\|>|<\|turn>"
    r"|<\|START_OF_TURN_TOKEN\|>|<\|start\|>(?=system|developer|user|assistant)|<\|prompter\|>"
    r"|<｜(?:User|Assistant)｜>|<(?:human|bot)>:|\[INST\]|\[SYSTEM_PROMPT\]|\[AVAILABLE_TOOLS\]"
    r"|###[ \t]*(?:Instruction|Response|Human|Assistant)[ \t]*:)"
)


class Markup(NamedTuple):
    """The markup of a family of models: its name, a text that it always holds, and what reads its turns."""

    name: str
    sign: str
    turns: Callable[[str], list[Turn] | None]


def marked(
    begin: str, ends: tuple[str, ...], around: tuple[str, ...] = (), first: str = ""
) -> Callable[[str], list[Turn] | None]:
    """A reader of turns that each begin with a mark. begin: its pattern, whose group is the role; ends: texts one of which
    may close a turn; around: those that may stand in front of the first or behind the last; first: the pattern of a system
    text in front of the first mark, where the markup has it there."""
    mark = re.compile(begin)

    def read(text: str) -> list[Turn] | None:
        text = _without(text, around)
        marks = list(mark.finditer(text))
        found = [ROLES.get(one[1].casefold(), one[1]) for one in marks]
        above = text[: marks[0].start()].strip() if marks else ""
        if not marks or (above and not (first and re.match(first, above))):
            return None
        turns = [Turn("system", above)] if above else []
        turns += [Turn(one.role, _without(one.content, ends, front=False)) for one in _between(text, marks, found)]
        if turns[-1].role == "assistant" and not turns[-1].content:
            turns.pop()  # the prompt for an answer that is not there
        return turns

    return read


def _without(text: str, marks: tuple[str, ...], front: bool = True) -> str:
    """`text` without white space and any of the marks at its end, and in front where asked for."""
    text = text.strip()
    for mark in marks * 2:  # two of them may stand there, in either order
        text = text.removesuffix(mark).rstrip()
        text = text.removeprefix(mark).lstrip() if front else text
    return text


LEARNABLE = frozenset(("system", "user", "assistant"))
ROLES = {"system": "system", "user": "user", "human": "user", "prompter": "user", "chatbot": "assistant", "assistant": "assistant", "model": "assistant",
         "gpt": "assistant", "bot": "assistant", "ai": "assistant"}  # fmt: skip
ALPACA = re.compile(
    r"^###[ \t]*(Instruction|Input|Response|Output|Question|Answer|指令|输入|回答|输出)[ \t]*[:：][ \t]*", re.MULTILINE
)
ALPACA_PARTS = {"instruction": "user", "question": "user", "指令": "user", "input": "input", "输入": "input",
                "response": "assistant", "output": "assistant", "answer": "assistant", "回答": "assistant",
                "输出": "assistant"}  # fmt: skip
ALPACA_PREFACE = re.compile(r"\ABelow is an instruction that describes a task[^#]*\Z")
LLAMA_2 = re.compile(r"(\[/?INST\])")
MISTRAL_SYSTEM = re.compile(r"\[SYSTEM_PROMPT\](.*)\[/SYSTEM_PROMPT\]\s*", re.DOTALL)
BEGIN_SYSTEM, END_SYSTEM = "<<SYS>>", "<</SYS>>"


def _alpaca(text: str) -> list[Turn] | None:
    """Alpaca's headings: an instruction, its input where there is one, and the response; once or several times."""
    text = _without(text, ("<s>", "</s>", "<|endoftext|>"))
    marks = list(ALPACA.finditer(text))
    kinds = [ALPACA_PARTS[mark[1].casefold()] for mark in marks]
    if not marks or kinds[0] != "user" or kinds[-1] != "assistant":
        return None
    preface = text[: marks[0].start()].strip()
    turns: list[Turn] = []
    if preface and not ALPACA_PREFACE.match(preface):
        turns.append(Turn("system", preface))
    for part in _between(text, marks, kinds):
        if part.role == "input" and turns and turns[-1].role == "user":
            turns[-1] = Turn("user", "\n\n".join(filter(None, (turns[-1].content, part.content))))
        elif part.role == "input":
            return None
        else:
            turns.append(part)
    return turns


def _llama_2(text: str) -> list[Turn] | None:
    """Llama 2's and Mistral's instructions in [INST], with a system text in the first where there is one."""
    before, *pieces = LLAMA_2.split(_without(text, ("<s>", "</s>")))
    marks = pieces[0::2]
    above = MISTRAL_SYSTEM.fullmatch(before)
    before = "" if above else before
    if before or not marks or marks != ["[INST]", "[/INST]"] * (len(marks) // 2):
        return None
    turns = [Turn("system", above[1].strip())] if above else []
    for number, content in enumerate(pieces[1::2]):
        content = _without(content, ("<s>", "</s>"))
        if not number and content.startswith(BEGIN_SYSTEM) and END_SYSTEM in content:
            system, _, content = content.removeprefix(BEGIN_SYSTEM).partition(END_SYSTEM)
            turns.append(Turn("system", system.strip()))
        turns.append(Turn("assistant" if number % 2 else "user", content.strip()))
    return turns if turns[-1].content else turns[:-1]


TEXT_END = "<|endoftext|>"
HUMAN = r"###[ \t]*(System|Human|User|Assistant|Bot)[ \t]*(?:[:：][ \t]*|\n)"
MARKUPS = (
    Markup(
        "ChatML",
        "<|im_start|>",
        marked(r"<\|im_start\|>[ \t]*(\w+)[ \t]*(?:<\|im_sep\|>)?\n?", ("<|im_end|>",), (TEXT_END,)),
    ),
    Markup(
        "Llama 3",
        "<|start_header_id|>",
        marked(
            r"<\|start_header_id\|>\s*(\w+)\s*<\|end_header_id\|>\s*",
            ("<|eot_id|>",),
            ("<|begin_of_text|>", "<|end_of_text|>"),
        ),
    ),
    Markup(
        "Gemma",
        "<start_of_turn>",
        marked(r"<start_of_turn>\s*(\w+)[ \t]*\n?", ("<end_of_turn>",), ("<bos>", "<eos>")),
    ),
    Markup("Llama 2 and Mistral", "[INST]", _llama_2),
    Markup(
        "Llama 4",
        "<|header_start|>",
        marked(
            r"<\|header_start\|>\s*(\w+)\s*<\|header_end\|>\s*",
            ("<|eot|>",),
            ("<|begin_of_text|>", "<|end_of_text|>"),
        ),
    ),
    Markup(
        "Zephyr and Phi-3",
        "<|user|>",
        marked(r"<\|(system|user|assistant)\|>[ \t]*\n?", ("</s>", "<|end|>"), ("<s>", TEXT_END, "[gMASK]", "<sop>")),
    ),
    Markup(
        "OpenAssistant",
        "<|prompter|>",
        marked(r"<\|(system|prompter|assistant)\|>[ \t]*\n?", (TEXT_END, "</s>"), ("<s>", "</s>", TEXT_END)),
    ),
    Markup(
        "DeepSeek",
        "<｜User｜>",
        marked(r"<｜(User|Assistant)｜>", ("<｜end▁of▁sentence｜>",), ("<｜begin▁of▁sentence｜>",), first=r"[^<]"),
    ),
    Markup(
        "Command R",
        "<|START_OF_TURN_TOKEN|>",
        marked(
            r"<\|START_OF_TURN_TOKEN\|><\|(USER|CHATBOT|SYSTEM)_TOKEN\|>", ("<|END_OF_TURN_TOKEN|>",), ("<BOS_TOKEN>",)
        ),
    ),
    Markup(
        "Granite",
        "<|start_of_role|>",
        marked(r"<\|start_of_role\|>(\w+)<\|end_of_role\|>", ("<|end_of_text|>",), ("<|end_of_text|>",)),
    ),
    Markup(
        "OpenChatKit", "<human>:", marked(r"(?:(?<=\n)|\A)<(human|bot)>:[ \t]*", ("</s>",), ("<s>", "</s>", TEXT_END))
    ),
    Markup(
        "Vicuna",
        "ASSISTANT:",
        marked(
            r"(?:(?<=\s)|(?<=</s>)|\A)(USER|ASSISTANT):[ \t]*",
            ("</s>", TEXT_END),
            ("<s>", "</s>"),
            first="A chat between",
        ),
    ),
    Markup("### Human", "### ", marked(rf"(?:(?<=\n)|\A){HUMAN}", ("###", "</s>"), ("<s>", "</s>", TEXT_END))),
    Markup("### Human on one line", "### ", marked(HUMAN, ("###", "</s>"), ("<s>", "</s>", TEXT_END))),
    Markup("Alpaca", "###", _alpaca),
)


FIRST = frozenset("<#[ABU")  # what a text in markup begins with; the last of words in front of headings and marks


def in_markup(text: str, plainly: str = "text") -> tuple[str, list[Turn]] | None:
    """The name of the chat markup that all of a text is written in, and its turns; None for any other text.

    Only what begins in it and holds a question and an answer counts: a text about markup may quote some. Bad for one that
    holds turns of others besides, which is a conversation as surely and cannot be read here. plainly: the FORMAT that takes
    it as it stands.
    """
    for one in MARKUPS:
        if one.sign in text and (turns := one.turns(text)):
            roles = {turn.role for turn in turns}
            if {"user", "assistant"} <= roles:
                if strange := sorted(roles - LEARNABLE):
                    raise Bad(
                        f"the text is in the chat markup of {one.name}, with turns of {shorten(strange[0])}, which are read "
                        f"from messages alone; FORMAT = {plainly} takes it as it stands"
                    )
                return one.name, turns
    return None
