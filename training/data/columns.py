"""Which column of a table, or field of an object, holds what: by its own name, by the usual names, or by COLUMNS."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import NamedTuple

from training.data.values import Bad
from training.system.wording import shorten

# FORMAT -> the fields that make a row one of it; the first whose fields are all there wins.
PAIRS = {
    "alpaca": (("instruction", "output"), ("instruction", "response")),
    "prompt": (("prompt", "completion"),),
    "input": (("input", "output"),),
}
KNOWN = frozenset(
    {"messages", "conversations", "text", *(name for pairs in PAIRS.values() for pair in pairs for name in pair)}
)
# Fields that may stand beside those of a format.
BESIDE = ("system", "context", "history", "tools", "reasoning_content", "reasoning", "thinking")
EXACT = KNOWN | set(BESIDE)


def bare(name: str) -> str:
    """A column's name without what people and programs vary: case, blanks, dashes, marks that nobody sees."""
    return name.translate(VARIED).casefold()


VARIED = dict.fromkeys(map(ord, " \t\xa0_-\ufeff\u200b\u200e\u200f\u202a\u202b\u202c\u061c"))


def all_bare(written: str) -> frozenset[str]:
    """Names of columns, with blanks between, as `bare` has them."""
    return frozenset(map(bare, written.split()))


# The usual names: what asks, what answers, and the rest. Chinese ones in both scripts.
QUESTIONS = all_bare(
    "instruction question query prompt input user human user_message user_input problem q source ask request "
    "指令 问题 問題 提问 提問 提示 提示词 提示詞 用户 用戶 输入 輸入 问 問 用户输入 用戶輸入 用户问题 用戶問題"
)
ANSWERS = all_bare(
    "output response answer completion reply target assistant bot gpt assistant_message model_response solution a answers "
    "输出 輸出 回答 答案 回复 回覆 助手 答 应答 應答 响应 響應 答复 答覆"
)
# Names of which one is taken where no usual one is there.
LESSER_QUESTIONS = all_bare("inputs input_text user_query question_text prompt_text customer_message")
LESSER_ANSWERS = all_bare(
    "outputs targets output_text target_text expected_output ideal reference_answer ground_truth correct_answer "
    "best_answer answer_text agent_reply"
)
INPUTS = all_bare("input context 输入 輸入 上下文 背景")
INSTRUCTIONS = all_bare("instruction 指令")
OTHERS = {
    **dict.fromkeys(
        all_bare(
            "messages message conversation conversations dialog dialogue dialogs chat contents 对话 對話 消息 訊息"
        ),
        "messages",
    ),
    **dict.fromkeys(all_bare("text 文本"), "text"),
}
ASIDE = {
    **dict.fromkeys(
        all_bare(
            "system system_prompt system_message system_instruction system_text sys_prompt meta_instruction "
            "系统 系統 系统提示 系統提示 系统提示词 系統提示詞 系统消息 系统指令"
        ),
        "system",
    ),
    **dict.fromkeys(all_bare("history chat_history 历史 歷史 历史对话 歷史對話"), "history"),
    **dict.fromkeys(all_bare("context contexts retrieved_contexts passage passages 上下文 背景"), "context"),
    **dict.fromkeys(all_bare("tools 工具"), "tools"),
    **dict.fromkeys(all_bare("reasoning_content reasoning thinking 思考 思考过程 思考過程"), "reasoning_content"),
}


class Named(NamedTuple):
    """Which field each column is (column -> field), and what to say of it; or why that cannot be told."""

    fields: Mapping[str, str]
    said: str = ""
    refused: str = ""


def by_setting(fields: Mapping[str, object], columns: Mapping[str, str]) -> dict[str, object]:
    """The row's fields by COLUMNS (field -> column); what these do not name keeps its name, where that is free."""
    missing = [column for column in columns.values() if column not in fields]
    if missing:
        alike = [name for name in fields if bare(name) == bare(missing[0])]
        meant = f"; {shorten(alike[0])!r} is there" if alike else ""
        found = ", ".join(shorten(str(name)) for name in list(fields)[:8]) or "none"
        raise Bad(f"COLUMNS names {shorten(missing[0])!r}, which is not there (fields found: {found}){meant}")
    taken = {*columns, *columns.values()}
    if not KNOWN.isdisjoint(
        columns
    ):  # what asks or answers is told by COLUMNS alone: no other column may take that part
        taken |= KNOWN
    rest = {name: value for name, value in fields.items() if name not in taken}
    return {**rest, **{field: fields[column] for field, column in columns.items()}}


TAKEN = "of the column"  # begins what is said of columns that were taken as fields


@lru_cache(maxsize=1024)
def usual(names: tuple[str, ...], format: str = "auto") -> Named:
    """What the columns of these names are, by the usual names. Names that are known as they are stay what they are."""
    found: dict[str, str] = {}
    if not is_whole(names):
        main = _main(names, format)
        if main.refused:
            return main
        found.update(main.fields)
    for name in names:
        aside = ASIDE.get(bare(name))
        if aside and name not in found and name not in EXACT and aside not in names and aside not in found.values():
            found[name] = aside
    changed = {name: field for name, field in found.items() if name != field}
    if not changed:
        return Named({})
    columns, fields = ", ".join(map(shorten, changed)), ", ".join(changed.values())
    return Named(changed, f"{TAKEN}{'s' * (len(changed) > 1)} {columns}, taken as {fields}")


@lru_cache(maxsize=1024)
def needs_no_names(names: tuple[str, ...]) -> bool:
    """Whether fields of these names make a row as they are, and hold nothing that has to be looked at besides."""
    return EXACT.issuperset(names) and is_whole(names)


def are_known(names: tuple[str, ...]) -> bool:
    """Whether columns of these names are told by them, or are refused by them."""
    found = usual(names)
    return bool(found.fields or found.refused or is_whole(names))


def is_whole(names: Iterable[str]) -> bool:
    """Whether fields of these names make a row as they are."""
    exact = KNOWN.intersection(names)
    return bool(exact & {"messages", "conversations", "text"}) or any(
        exact.issuperset(pair) for pairs in PAIRS.values() for pair in pairs
    )


def _main(names: tuple[str, ...], format: str) -> Named:
    """The columns that ask and answer, or hold whole conversations."""
    by_bare = {name: bare(name) for name in names}
    if format == "text":
        texts = [name for name, known in by_bare.items() if OTHERS.get(known) == "text"]
        return Named({texts[0]: "text"} if len(texts) == 1 else {})
    others = [name for name, known in by_bare.items() if known in OTHERS]
    asks, answers = (
        [name for name, known in by_bare.items() if known in usual_ones]
        or [name for name, known in by_bare.items() if known in lesser]
        for usual_ones, lesser in ((QUESTIONS, LESSER_QUESTIONS), (ANSWERS, LESSER_ANSWERS))
    )
    if not (asks and answers):
        # A table of texts has other columns as well, which are no questions.
        return Named({others[0]: OTHERS[by_bare[others[0]]]}) if len(others) == 1 else Named({})
    choices = [name for letter in ("a", "b") for name, known in by_bare.items() if known == letter]
    if len(choices) > 1:
        listed = " and ".join(map(shorten, choices))
        correct = next((name for name in answers if by_bare[name] != "a"), "the answer's column")
        return Named(
            {},
            "",
            f"{listed} look like the choices of a question, of which none is known to be the answer: COLUMNS says what asks and "
            f"what answers, as in COLUMNS = instruction: {shorten(asks[0])}, output: {shorten(correct)}",
        )
    inputs: list[str] = []
    if len(asks) == 2 and any(by_bare[name] in INSTRUCTIONS for name in asks):
        inputs = [name for name in asks if by_bare[name] in INPUTS]
        asks = [name for name in asks if name not in inputs]
    for found, field in ((asks, "instruction"), (answers, "output")):
        if len(found) > 1:
            listed = " and ".join(map(shorten, found[:4]))
            what = "question" if field == "instruction" else "answer"
            return Named(
                {},
                "",
                f"{listed} may each be the {what}: COLUMNS says which, as in COLUMNS = {field}: {shorten(found[0])}",
            )
    ask, answer = asks[0], answers[0]
    if inputs:
        return Named({ask: "instruction", **dict.fromkeys(inputs, "input"), answer: "output"})
    own = (by_bare[ask], by_bare[answer])
    known = [pair for name, pairs in PAIRS.items() for pair in pairs if format in ("auto", name)]
    fields = own if own in known else known[0] if known else ("instruction", "output")
    return Named({ask: fields[0], answer: fields[1]})
