"""The chat template: which one is used and why, and rendering it as transformers does. No torch is imported."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from training.base_model import BaseModel
from training.data import jinja_text, own_template, template_trial, tool_form
from training.data.turns import Turn
from training.errors import UserError
from training.settings import Settings, prompt_template
from training.settings.readers import OWN_TEMPLATES
from training.system import paths

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A model that has no template of its own has never seen one; ChatML is what most tools and servers know.
FOR_BASE_MODELS = "chatml"


@dataclass(frozen=True)
class ChatTemplate:
    """A template that was tried out, with all that rendering and masking need.

    `jinja`: its text, to be stored with the model. `source`: where it is from, for the log. `system`: SYSTEM_PROMPT.
    `turn_end`: the text that closes an answer, up to and including its special token; `turn_end` is "" when nothing does.
    `eos_follows`: that text is no single token, so that eos is appended to it and trained.
    `tail`: all that the template writes after the last answer (turn_end + white space, often). `end_tokens`: every text
    that ends an answer, for Ollama's stop parameters. `opens_think`: the prompt for an answer ends in an open <think>.
    `takes_system`: a system message shows in the rendering. `today`: the date that some templates write into the system
    text (Llama 3.2), so that a run that is resumed tomorrow sees the same tokens. `served`, `opening`: see serving.py.
    `thinking`: THINKING, which decides whether thoughts are written, and which are learned. `tools_apart`: the model has another
    template for chats with tools. `alone`: it was chosen, and no other of the model's own is to stay beside it.
    `tools_by_name`: TEMPLATE writes functions, too, so that parameters and arguments are trained in the order of their names.
    `thinks`: thoughts were trained, and the switch goes on to work.
    """

    jinja: str = field(repr=False)
    source: str
    system: str | None = None
    bos: str = ""
    eos: str = ""
    turn_end: str = ""
    tail: str = ""
    eos_follows: bool = False
    end_tokens: tuple[str, ...] = ()
    opens_think: bool = False
    takes_system: bool = True
    today: datetime.date | None = None
    special: Mapping[str, str] = field(default_factory=dict, compare=False)
    served: str = field(default="", repr=False)
    opening: str = ""
    thinking: str = "auto"
    tools_apart: bool = False
    alone: bool = False
    tools_by_name: bool = False
    thinks: bool = False

    @property
    def exported(self) -> str:
        """The Jinja text that goes into merged/ and into the GGUF."""
        return self.served or self.jinja


def names() -> list[str]:
    """The templates that CHAT_TEMPLATE knows by name."""
    return sorted(path.stem for path in paths.CHAT_TEMPLATES.glob("*.jinja"))


def choose(
    base: BaseModel | None, settings: Settings, tokenizer: PreTrainedTokenizerBase, today: datetime.date | None = None
) -> ChatTemplate:
    """The template of this run: PROMPT_TEMPLATE, else CHAT_TEMPLATE, else the model's own, else ChatML.

    `base` has `.path` and may be None. `today` is the run's date, for templates that write one. Raises UserError when there is no such template, when it cannot be rendered, or when
    it leaves out the SYSTEM_PROMPT that was set.
    """
    jinja, source = _find(base, settings, tokenizer)
    is_own = source.startswith(own_template.OWN)
    tools_apart = is_own and own_template.for_tools(tokenizer, jinja)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items() if isinstance(token, str)}
    system = settings.model.system_prompt or None
    today = today or datetime.date.today()
    if source != "PROMPT_TEMPLATE" and settings.model.chat_template not in names():
        template_trial.check(source, lambda: _first_renderings(jinja, special, today))
    if header := _missing_header(jinja, special, today):
        jinja += "{%- if add_generation_prompt %}{{- " + json.dumps(header, ensure_ascii=False) + " }}{%- endif %}"
        source += f", with the generation prompt that it lacks, {header!r}"
    thinking = settings.dataset.thinking
    return replace(
        _tried(jinja, source, special, system, tokenizer, today, thinking),
        thinking=thinking,
        tools_apart=tools_apart,
        alone=not is_own,
    )


def _first_renderings(jinja: str, special: Mapping[str, str], today: datetime.date) -> None:
    """Render what `_tried` will render, and a longer chat."""
    asked = [Turn("user", QUESTION), Turn("assistant", ANSWER)]
    for turns, add in ((asked[:1], True), (asked, False), ([Turn("system", SYSTEM), *asked * 3], False)):
        with suppress(UserError):
            jinja_text.rendered(jinja, special, turns, add, today)


def _missing_header(jinja: str, special: Mapping[str, str], today: datetime.date) -> str:
    """The text that begins an answer, of a template that does not write it as the generation prompt; else "".

    Without it the model would be trained to write the header of its own turn, and a server would show that.
    """
    asked, answered = [Turn("user", QUESTION)], [Turn("user", QUESTION), Turn("assistant", ANSWER)]
    try:
        prompt, open_prompt, whole = (
            jinja_text.rendered(jinja, special, turns, add, today)
            for turns, add in ((asked, True), (asked, False), (answered, False))
        )
    except UserError:  # told with its reason when the template is tried
        return ""
    if prompt != open_prompt or not whole.startswith(prompt) or whole.count(ANSWER) != 1:
        return ""
    header = whole[len(prompt) : whole.index(ANSWER)]
    return header if header.strip() else ""


def _find(base: BaseModel | None, settings: Settings, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """The Jinja text and where it is from."""
    wanted = settings.model.chat_template
    automatic = not wanted or wanted == "auto"
    if settings.dataset.prompt_template:
        if not automatic:
            raise UserError(
                "[Dataset] PROMPT_TEMPLATE and [Model] CHAT_TEMPLATE both say how a chat is written: leave one out"
            )
        template = prompt_template.parse(settings.dataset.prompt_template)
        closed = any(token in template.suffix for token in _added_tokens(tokenizer).values())
        return _with_bos(template.jinja("" if closed else "eos_token"), tokenizer), "PROMPT_TEMPLATE"
    if wanted in OWN_TEMPLATES:
        return own_template.named(wanted, base, tokenizer), f"CHAT_TEMPLATE = {wanted} (the model's own)"
    if not automatic:
        return _named(wanted, tokenizer)
    if own := own_template.find(base, tokenizer):
        return own
    jinja, _ = _named(FOR_BASE_MODELS, tokenizer)
    return jinja, f"CHAT_TEMPLATE = {FOR_BASE_MODELS} (auto: the model has no template of its own)"


def _named(wanted: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    source = f"CHAT_TEMPLATE = {wanted}"
    if wanted in names():
        return _with_bos(
            (paths.CHAT_TEMPLATES / f"{wanted}.jinja").read_text(encoding="utf-8").strip(), tokenizer
        ), source
    path = paths.expanded(wanted)
    if not path.is_file():
        raise UserError(
            f"[Model] CHAT_TEMPLATE = {wanted}: neither a file nor a known name (auto, {', '.join(names())})"
        )
    try:
        return path.read_text(encoding="utf-8"), source
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"[Model] CHAT_TEMPLATE = {wanted}: cannot be read: {error}") from None


def _with_bos(jinja: str, tokenizer: PreTrainedTokenizerBase) -> str:
    """Our own templates write BOS where the tokenizer would, as the models' own do."""
    return "{{- bos_token -}}" + jinja if adds_bos(tokenizer) else jinja


def adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """True when the tokenizer itself puts BOS in front of a text, as llama.cpp and Ollama then do, too."""
    bos = getattr(tokenizer, "bos_token_id", None)
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def render(
    template: ChatTemplate,
    messages: Iterable[Turn | Mapping[str, Any]],
    add_generation_prompt: bool = False,
    tools: str = "",
) -> str:
    """The text of a conversation, rendered by transformers' own Jinja environment. SYSTEM_PROMPT is not added here.

    tools: the functions that it offers, as the JSON text of a list. Raises UserError with the template's own words when it
    refuses the messages.
    """
    handed = _handed(template.thinking)
    if tools:
        offered = json.loads(tools)
        handed = {**handed, "tools": tool_form.by_name(offered) if template.tools_by_name else offered}
    if template.tools_by_name:
        messages = [
            tool_form.calls_by_name(jinja_text.message(one) if isinstance(one, Turn) else dict(one)) for one in messages
        ]
    by_name = template.tools_by_name
    return jinja_text.rendered(
        template.jinja, template.special, messages, add_generation_prompt, template.today, handed, by_name
    )


SWITCH = "enable_thinking"  # by which templates are told whether the model is to think


def _handed(thinking: str) -> dict[str, object]:
    """What a template is handed besides the messages."""
    return {SWITCH: False} if thinking == "off" else {}


def prompt_served(
    template: ChatTemplate,
    messages: Iterable[Mapping[str, Any]],
    add_generation_prompt: bool,
    tools: str = "",
    think: bool = True,
) -> str:
    """What an Ollama TEMPLATE must write: the conversation, and after the generation prompt what began every answer.
    think: what a request asks for; where every answer began alike, it changes nothing."""
    if not think and not template.opening:
        template = replace(template, jinja=template.exported, thinking="off")
    text = render(template, messages, add_generation_prompt, tools)
    return text + template.opening if add_generation_prompt else text


def as_served(
    template: ChatTemplate, messages: Iterable[Turn | Mapping[str, str]], jinja: str, handed: Mapping[str, object]
) -> str:
    """A prompt by the text `jinja` with what a server hands to a chat template besides. UserError as `render`."""
    return jinja_text.rendered(jinja, template.special, messages, True, template.today, handed)


def samples(template: ChatTemplate) -> list[str]:
    """A few chats as the template writes them, with every marker that it has: texts to hold tokenizers against."""
    talk = [{"role": "user", "content": "What is 3 + 3?"}, {"role": "assistant", "content": "6, of course.\n"}]
    talk += [{"role": "user", "content": " 你好 \n\n"}]
    found = []
    for messages in (talk[:1], talk[:2], talk, [{"role": "system", "content": "Be brief."}, *talk]):
        with suppress(UserError):  # a template without a system turn refuses one
            found.append(render(template, messages, messages[-1]["role"] == "user"))
    return found


def conversation(template: ChatTemplate, messages: Sequence[Turn]) -> list[Turn]:
    """The messages with SYSTEM_PROMPT in front, unless they bring a system message of their own."""
    messages = list(messages)
    if template.system and (not messages or messages[0].role != "system"):
        return [Turn("system", template.system), *messages]
    return messages


QUESTION, ANSWER, SYSTEM = "probequestion", "probeanswer", "probesystem"


def _tried(
    jinja: str,
    source: str,
    special: dict[str, str],
    system: str | None,
    tokenizer: PreTrainedTokenizerBase,
    today: datetime.date,
    thinking: str,
) -> ChatTemplate:
    """Render probes, and learn from them how an answer ends. Raises UserError for a template that cannot serve."""

    def rendered(messages: list[Turn], add_generation_prompt: bool = False) -> str:
        return jinja_text.rendered(jinja, special, messages, add_generation_prompt, today, _handed(thinking))

    try:
        asked = [Turn("user", QUESTION)]
        whole = rendered([*asked, Turn("assistant", ANSWER)])
        prompt = rendered(asked, True)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    if whole.count(ANSWER) != 1 or QUESTION not in prompt:
        raise UserError(f"{source}: the template does not write out the question and the answer once")
    tail = whole.split(ANSWER)[1]
    turn_end, eos_follows = _turn_end(tail, tokenizer)
    eos = special.get("eos_token", "")
    if eos_follows and not eos:
        raise UserError(
            f"{source}: nothing ends an answer: no special token follows it, and the model has no eos token"
        )
    takes_system = _takes_system(rendered)
    if system and takes_system:
        raise UserError(f"[Model] SYSTEM_PROMPT: {takes_system} ({source})")
    end = turn_end.strip()
    return ChatTemplate(
        jinja=jinja,
        source=source,
        system=system,
        bos=special.get("bos_token", ""),
        eos=eos,
        turn_end=turn_end,
        tail=tail,
        eos_follows=eos_follows,
        end_tokens=tuple(dict.fromkeys(text for text in (end, eos) if text)),
        opens_think=prompt.rstrip().endswith("<think>"),
        takes_system=not takes_system,
        today=today,
        special=special,
    )


def _takes_system(rendered: Callable[[list[Turn]], str]) -> str:
    """Why the template cannot take a system message; "" when it can."""
    try:
        text = rendered([Turn("system", SYSTEM), Turn("user", QUESTION), Turn("assistant", ANSWER)])
    except UserError as error:
        return str(error)
    return "" if SYSTEM in text else "the chat template leaves system messages out"


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    return {number: str(token) for number, token in tokenizer.added_tokens_decoder.items()}


def _turn_end(tail: str, tokenizer: PreTrainedTokenizerBase) -> tuple[str, bool]:
    """The text that closes an answer, and whether eos must follow it because it holds no special token.

    The first special token after the answer is it: Phi writes "<|end|>\\n<|endoftext|>", and answers with <|end|>.
    """
    added = _added_tokens(tokenizer)
    found = [(tail.index(text), text) for text in added.values() if text.strip() and text in tail]
    if not found:
        return tail.rstrip(), True
    place, text = min(found, key=lambda item: (item[0], -len(item[1])))
    return tail[: place + len(text)], False
