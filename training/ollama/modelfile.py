"""The Modelfile: which GGUF, the proved TEMPLATE, stop texts, context length, sampling, system text."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from training.errors import UserError
from training.ollama.go_template import PLAIN, go_template
from training.ollama.modelfile_syntax import file_name_problems, model_name_problems, quote, read
from training.ollama.template_parts import Pieces, Refusal, Render, difference
from training.ollama.template_probe import derive
from training.ollama.thought_parts import RenderThoughts, ThoughtPieces
from training.ollama.thought_parts import derive as derive_thoughts
from training.ollama.tool_parts import RenderTools, ToolPieces
from training.ollama.tool_parts import derive as derive_tools
from training.system import files

NATIVE = "0.30.0"  # the first Ollama that runs a GGUF with the Jinja chat template inside it

# Keys of a generation_config.json, Ollama's name for each, and the values that make sense (low, high, whole number).
_SAMPLING = {
    "temperature": ("temperature", 0.0, 10.0, False),
    "top_p": ("top_p", 0.0, 1.0, False),
    "top_k": ("top_k", 0, 1_000_000, True),
    "min_p": ("min_p", 0.0, 1.0, False),
    "repetition_penalty": ("repeat_penalty", 0.0, 10.0, False),
}


@dataclass(frozen=True)
class Chat:
    """How the model was trained to chat: all that TEMPLATE and SYSTEM follow from.

    `render(messages, add_generation_prompt)`: the chat template; `jinja`: its source; `bos`, `eos`: the texts of these
    tokens ("" where there is none); `adds_bos`: the GGUF's tokenizer puts a BOS first by itself (add_bos_token);
    `system`: the SYSTEM_PROMPT trained with; `with_functions`: `render` with functions, their parameters in the order of
    their names, where TEMPLATE is to write them; `with_thoughts`: the same with thoughts, thinking on or off.
    """

    render: Render
    jinja: str = ""
    bos: str = ""
    eos: str = ""
    adds_bos: bool = True
    system: str | None = None
    with_functions: RenderTools | None = None
    with_thoughts: RenderThoughts | None = None


@dataclass(frozen=True, kw_only=True)
class TemplateCheck:
    """Whether a Modelfile holds what its chat template says, and by what it was proved.

    `conversations` were rendered both ways, `exceptions` are what may differ all the same. `requires`: what the file needs
    where TEMPLATE is left out. `note` says it in words, and what is wrong.
    """

    passed: bool = False
    conversations: int = 0
    exceptions: tuple[str, ...] = ()
    requires: str = ""
    note: str

    def figures(self) -> dict[str, object]:
        """All of it for the report but whether it passed."""
        needed = {"requires": self.requires} if self.requires else {}
        return {
            "conversations": self.conversations,
            "exceptions": list(self.exceptions),
            **needed,
            "note": self.note,
        }


def compose(
    gguf: str,
    chat: Chat | None,
    *,
    stops: Sequence[str],
    num_ctx: int,
    sampling: Mapping[str, float] | None = None,
    adapter_of: str | None = None,
) -> str:
    """The text of a Modelfile for `gguf`, the name of a file beside it; nothing is written, so it can be tried early.

    `chat` None is a model trained on plain text. `adapter_of`: a model that Ollama has already, for which `gguf` is an
    adapter. TEMPLATE is left out when it cannot be proved. UserError names every value that a Modelfile cannot hold.
    """
    parts = _parts(chat, adapter_of)
    return _text(gguf, parts, stops, num_ctx, sampling or {}, adapter_of)


def write(path: Path, text: str) -> None:
    """Write a composed Modelfile, whole or not at all."""
    files.write_text(path, text, shared=True)


def verify(path: Path, chat: Chat | None, stops: Sequence[str] = ()) -> TemplateCheck:
    """The TEMPLATE on the disk renders what the chat template renders.

    The chat template is taken apart and proved anew, and what the file holds is compared with that; `stops` are texts
    that must be stop texts. A TEMPLATE left out because it cannot be proved passes, and the record says what it needs.
    """
    commands = read(path)
    held = dict(commands)
    parts = _parts(chat, held.get("from") if "adapter" in held else None)
    missing = [stop for stop in stops if ("stop", stop) not in commands]
    if held.get("template") != parts.template:
        wrong = f"TEMPLATE is not the chat template: {_compared(parts.template, held.get('template'))}"
    elif (held.get("system") or None) != parts.system:
        wrong = f"SYSTEM is not the SYSTEM_PROMPT: {_compared(parts.system, held.get('system'))}"
    elif missing:
        wrong = f"PARAMETER stop is missing for {', '.join(map(repr, missing))}"
    else:
        return replace(parts.check, passed=True)
    return replace(parts.check, note=wrong)


@dataclass(frozen=True)
class _Parts:
    """What follows from the chat template: two values, comments for the file, and the check of a file that holds them.

    `trained`: a comment that export_ollama.sh reads, to know which template a server may use beside TEMPLATE.
    """

    template: str | None
    system: str | None
    comments: tuple[str, ...]
    check: TemplateCheck
    trained: str = "Takes plain text: a chat template would be wrong."


def _parts(chat: Chat | None, adapter_of: str | None) -> _Parts:
    if chat is None:
        return _Parts(PLAIN, None, (), TemplateCheck(note="plain text: the prompt as it is"))
    trained = f"Chats by the chat template of SHA-256 {fingerprint(chat.jinja)}."
    pieces = derive(chat.render, bos=chat.bos, eos=chat.eos, jinja=chat.jinja)
    if isinstance(pieces, Refusal):
        note = left_out(pieces, adapter_of)
        check = TemplateCheck(note=note, requires="" if adapter_of is not None else f"Ollama {NATIVE}")
        return _Parts(None, chat.system or None, (note,), check, trained)
    comments = [f"TEMPLATE is equal to the chat template in {pieces.conversations} conversations."]
    tools, thoughts, unthought = _more(chat, pieces)
    exceptions = (*pieces.exceptions, *(thoughts.exceptions if thoughts else ()))
    if exceptions:
        comments.append(f"It may differ in: {', '.join(exceptions)}.")
    if tools:
        comments.append(f"With functions it is equal in {tools.conversations} conversations.")
    if thoughts:
        comments.append(f"With thoughts, thinking on and off, it is equal in {thoughts.conversations} conversations.")
    if thoughts and pieces.generation.rstrip().endswith(thoughts.after.strip()):
        comments.append("It asks for no thoughts, which Ollama awaits: a request with format needs think = false.")
    if unthought:
        comments.append(f"Thoughts are for Ollama {NATIVE} and later, TEMPLATE cannot write them: {unthought}.")
    if prefers_jinja(chat.jinja, tools is not None, thoughts is not None):
        comments.append(f"Ollama {NATIVE} and later use the chat template in the GGUF, which knows tools or thinking.")
    if pieces.system == "none":
        comments.append("The chat template has no place for a system message: one that is sent is left out.")
    check = TemplateCheck(conversations=pieces.conversations, exceptions=exceptions, note=" ".join(comments))
    pieces, system = place_system(pieces, chat.system, chat.jinja)
    template = go_template(pieces, not chat.adds_bos, tools, thoughts)
    return _Parts(template, system, tuple(comments), check, trained)


def _more(chat: Chat, pieces: Pieces) -> tuple[ToolPieces | None, ThoughtPieces | None, str]:
    """The pieces around functions and around thoughts, where TEMPLATE is to write them, and can; and why not thoughts."""
    found = derive_tools(chat.with_functions, pieces) if chat.with_functions else None
    tools = found if isinstance(found, ToolPieces) else None
    if chat.with_thoughts is None:
        return tools, None, ""
    thoughts = derive_thoughts(chat.with_thoughts, pieces, tools, chat.eos, chat.jinja)
    if isinstance(thoughts, ThoughtPieces):
        return tools, thoughts, ""
    return tools, None, thoughts.reason


def writes_functions(chat: Chat) -> bool:
    """Whether TEMPLATE can write functions as the chat template does, and all servers would then use TEMPLATE: one that
    knows thoughts is used by later ones only where TEMPLATE can write those, too."""
    able = chat.with_functions is not None, chat.with_thoughts is not None
    if "tool" not in chat.jinja or prefers_jinja(chat.jinja, *able):
        return False
    pieces = derive(chat.render, bos=chat.bos, eos=chat.eos, jinja=chat.jinja)
    if isinstance(pieces, Refusal):
        return False
    tools, thoughts, _ = _more(chat, pieces)
    return tools is not None and not prefers_jinja(chat.jinja, True, thoughts is not None)


def fingerprint(jinja: str) -> str:
    """SHA-256 of a chat template as export_ollama.sh takes it of the one that a server shows: by it the two are compared.

    A shell drops zero bytes and the line ends at the end, and Windows adds carriage returns, so none of these count.
    """
    return hashlib.sha256(jinja.translate({0: None, 13: None}).rstrip("\n").encode()).hexdigest()


def left_out(refusal: Refusal, adapter_of: str | None = None) -> str:
    """Why TEMPLATE is not in the Modelfile, and what then happens."""
    if adapter_of is not None:
        return f"TEMPLATE is left out, so that {adapter_of}'s own is used: {refusal.reason}."
    return (
        f"TEMPLATE is left out, so that Ollama {NATIVE} or later is needed, which uses the chat template inside the GGUF: "
        f"{refusal.reason}."
    )


def _compared(wanted: str | None, found: str | None) -> str:
    if wanted is None or found is None:
        return "it is there, but should be left out" if wanted is None else "it is missing"
    return difference(wanted, found, ("expected", "found"))


def _text(
    gguf: str,
    parts: _Parts,
    stops: Sequence[str],
    num_ctx: int,
    sampling: Mapping[str, float],
    adapter_of: str | None,
) -> str:
    problems = file_name_problems(gguf) + (model_name_problems(adapter_of) if adapter_of is not None else [])

    def value(what: str, text: str) -> str:
        try:
            return quote(text, what)
        except UserError as error:
            problems.extend(error.problems)
            return ""

    lines = [f"# {line}" for comment in (*parts.comments, parts.trained) for line in comment.splitlines()]
    lines += [f"FROM {adapter_of}", f"ADAPTER ./{gguf}"] if adapter_of is not None else [f"FROM ./{gguf}"]
    if parts.template is not None:
        lines.append(f"TEMPLATE {value('TEMPLATE', parts.template)}")
    elif adapter_of is None:
        # Ollama before 0.14 does not know the word, and stops at it: rightly so.
        lines.append(f"REQUIRES {NATIVE}")
    if parts.system:
        lines.append(f"SYSTEM {value('SYSTEM_PROMPT', parts.system)}")
    lines += [f"PARAMETER stop {value('a stop text', stop)}" for stop in stops]
    lines.append(f"PARAMETER num_ctx {num_ctx:d}")
    lines += [f"PARAMETER {key} {number}" for key, number in sampling.items()]
    if problems:
        raise UserError(problems, "The Modelfile cannot be written:")
    return "\n".join(lines) + "\n"


def is_before_native(version: str) -> bool:
    """Whether a server's version is one that does not use the chat template in a GGUF.

    One that cannot be read, or 0.0.0 (built from source), is not known, which is not old.
    """
    numbers = re.match(r"v?(\d+)\.(\d+)", version)
    if numbers is None or re.match(r"v?0\.0(\.0)?(?!\.?\d)", version):
        return False
    least = tuple(map(int, NATIVE.split(".")))[:2]
    return (int(numbers[1]), int(numbers[2])) < least


def place_system(pieces: Pieces, system: str | None, jinja: str = "") -> tuple[Pieces, str | None]:
    """Find the place for a system text: a SYSTEM line, or, if that cannot hold it, the template's own default.

    TEMPLATE can hold any text (Go strings have escapes), but serves only where Ollama does not prefer the GGUF's `jinja`.
    Returns the pieces for go_template, and the text for SYSTEM. UserError when neither can hold it.
    """
    if not system:
        return pieces, None
    if pieces.system == "none":
        raise UserError("SYSTEM_PROMPT is set, but the model's chat template has no place for a system message")
    try:
        quote(system, "SYSTEM_PROMPT")
        return pieces, system
    except UserError:
        if pieces.system != "turn" or prefers_jinja(jinja):
            raise
        return replace(pieces, default=pieces.system_before + system + pieces.system_after), None


def knows_thoughts(jinja: str) -> bool:
    """Whether Ollama 0.30 and later take a chat template for one of a model that thinks."""
    splits = "content.split('</think>')" in jinja or 'content.split("</think>")' in jinja
    strips = splits and "reasoning_content" not in jinja and "<SPECIAL_12>" not in jinja
    return strips or ("<think>" in jinja and "</think>" in jinja)


def prefers_jinja(jinja: str, with_functions: bool = False, with_thoughts: bool = False) -> bool:
    """Whether Ollama 0.30 and later pass over TEMPLATE and use the GGUF's own `jinja`, because it can do more.

    That is so when it knows of tools or of thinking and TEMPLATE does not (server/images.go, shouldPreferChatTemplate):
    the server looks for these words. The prompt is the same: that is what is proved. Only what stands in TEMPLATE alone
    would be lost. `with_functions`: TEMPLATE writes functions, calls and results; `with_thoughts`: thoughts.
    """
    tools = not with_functions and ("tools" in jinja or "tool_call" in jinja)
    return tools or (not with_thoughts and knows_thoughts(jinja))


def stop_texts(
    eos: str | Iterable[str], end_tokens: Iterable[str] = (), generation_eos: Iterable[str] = ()
) -> list[str]:
    """Every text that ends an answer, once each: eos, the template's turn ends, generation_config's eos_token_id as texts."""
    first = [eos] if isinstance(eos, str) else list(eos)
    return [text for text in dict.fromkeys([*first, *end_tokens, *generation_eos]) if text and not text.isspace()]


def sampling(generation_config: Mapping[str, object]) -> dict[str, float]:
    """Ollama's PARAMETERs for the sampling values a generation_config.json has; values that make no sense are left out.

    do_sample = false, said outright, is greedy decoding: temperature 0, and the sampling values do not count.
    """
    if generation_config.get("do_sample") is False:
        kept = {"repetition_penalty": generation_config.get("repetition_penalty")}
        return {"temperature": 0} | sampling(kept)
    found: dict[str, float] = {}
    for key, (name, low, high, whole) in _SAMPLING.items():
        number = generation_config.get(key)
        if isinstance(number, bool) or not isinstance(number, (int, float)) or not math.isfinite(number):
            continue
        if low <= number <= high and (not whole or number == int(number)):
            found[name] = int(number) if whole else number
    return found
