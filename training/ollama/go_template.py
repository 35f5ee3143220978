"""Pieces of a chat template, written as an Ollama TEMPLATE: Go's text/template over .Messages.

Ollama (template/template.go, since 0.2.2 of July 2024) gives the template .Messages with .Role and .Content, consecutive
messages of one role merged, and every system message among them. A template that names .Messages is executed once for
the whole chat; an answer that comes last is one that the model is to continue. Functions come as .Tools, calls as
.ToolCalls of an answer, what they gave as messages of the role tool, which are not merged. Thoughts come as .Thinking of an
answer; a request's `think` as .Think, with .IsThinkSet, and is true where it says nothing and the server finds .Thinking.
"""

from __future__ import annotations

import re

from training.ollama.template_parts import Pieces, common_prefix
from training.ollama.thought_parts import AFTER_QUESTION, ALWAYS, NEVER, ThoughtPieces
from training.ollama.tool_parts import CallPieces, ToolPieces

PLAIN = "{{ .Prompt }}"  # for a model trained on plain text: the prompt as it is, nothing around it

# Looked at more closely: what begins an action, by itself or with the "{{" of an action written after it; three quotes
# (they would end the TEMPLATE in the Modelfile); and everything outside plain ASCII, of which only what Ollama's
# Modelfile reader keeps can stay as it is.
_SUSPECT = re.compile(r'\{(?:\{+|(?![ !#-z|}~\n]))|"{3,}|[^ -~\n]')

# Go writes JSON without spaces, and <, >, & and two line ends as escapes. This writes it as Jinja's tojson does.
_JSON = r"""{{- define "json" }}
{{- $text := . }}{{ $left := len $text }}{{ $quoted := false }}
{{- range $i := len $text }}
{{- $rest := slice $text $i }}{{ $byte := index $text $i }}
{{- if or (gt (len $rest) $left) (and (ge $byte 128) (lt $byte 192)) }}
{{- else if eq $byte 92 }}
{{- $escape := printf "%.6s" $rest }}{{ $left = len (slice $rest 2) }}
{{- if eq $escape `\u003c` }}<{{ $left = len (slice $rest 6) }}
{{- else if eq $escape `\u003e` }}>{{ $left = len (slice $rest 6) }}
{{- else if eq $escape `\u0026` }}&{{ $left = len (slice $rest 6) }}
{{- else if eq $escape `\u2028` }}{{ "\u2028" }}{{ $left = len (slice $rest 6) }}
{{- else if eq $escape `\u2029` }}{{ "\u2029" }}{{ $left = len (slice $rest 6) }}
{{- else }}{{ printf "%.2s" $rest }}
{{- end }}
{{- else }}{{ printf "%.1s" $rest }}
{{- if eq $byte 34 }}{{ $quoted = not $quoted }}
{{- else if and (not $quoted) (or (eq $byte 44) (eq $byte 58)) }}{{ " " }}
{{- end }}
{{- end }}
{{- end }}
{{- end }}"""


# A text without line breaks at its ends. What a server takes out of an answer keeps the one that stood before the end mark
# of thoughts, or between words and a call; a client hands it back like that, and it was trained once.
_BARE = """{{- define "bare" }}
{{- $text := . }}{{ $first := -1 }}{{ $last := 0 }}
{{- range $i := len $text }}
{{- if ne (index $text $i) 10 }}{{ $last = $i }}
{{- if lt $first 0 }}{{ $first = $i }}{{ end }}
{{- end }}
{{- end }}
{{- if ge $first 0 }}{{ slice $text $first (len (printf "%s " (slice $text 0 $last))) }}{{ end }}
{{- end }}"""

# The pieces that may be others with thinking off.
_SWITCHED = (
    "default",
    "system_before",
    "system_after",
    "user_before",
    "user_after",
    "answer_before",
    "answer_after",
    "generation",
    "continued_before",
)


def go_template(
    pieces: Pieces,
    write_bos: bool = False,
    tools: ToolPieces | None = None,
    thoughts: ThoughtPieces | None = None,
) -> str:
    """The TEMPLATE that renders as `template_parts.join` does, with `tools` as `tool_parts.join`, with `thoughts` as
    `thought_parts.join`, which has its own pieces for chats with thinking off.

    `write_bos`: put the BOS into the text. Only for a GGUF whose tokenizer.ggml.add_bos_token is false; otherwise the
    tokenizer adds one, and a second would stand in every prompt.
    """
    out = _Text(pieces, thoughts.off if thoughts else pieces)
    if write_bos:
        out.text(pieces.bos)
    folded = pieces.system in ("first user", "last user", "last message")
    _variables(out, pieces, folded, thoughts)
    if tools:
        _offered(out, tools)
    out.action("range $i, $_ := .Messages").action("$last := eq (len (slice $.Messages $i)) 1")
    _default(out, pieces, tools)
    if pieces.system != "none":
        _system_turn(out, pieces, folded, tools)
    out.action('else if eq .Role "user"' if pieces.system != "none" else 'if eq .Role "user"')
    _question(out, pieces, folded)
    out.action('else if eq .Role "assistant"')
    _answer(out, tools, thoughts)
    if tools:
        _results(out, tools.calls)
    out.action("end")
    if out.any("generation"):
        out.action('if and $last (ne .Role "assistant")').piece("generation").action("end")
    if tools:
        out.action("$role = .Role")
    out.action("end")
    written = [out.written(), *([_JSON] if tools else []), *([_BARE] if tools or _shows(thoughts) else [])]
    return "\n".join(written)


def _shows(thoughts: ThoughtPieces | None) -> bool:
    return thoughts is not None and thoughts.shown != NEVER


def _variables(out: _Text, pieces: Pieces, folded: bool, thoughts: ThoughtPieces | None) -> None:
    """What the whole chat is looked through for."""
    if any(out.differs(name) for name in _SWITCHED):
        out.action("$off := and .IsThinkSet (not .Think)")
    if folded:
        out.action('$system := ""').action("$held := false")
    last_question = pieces.system == "last user"
    after_question = thoughts is not None and thoughts.shown == AFTER_QUESTION
    if last_question:
        out.action("$question := -1")
    if after_question:
        out.action("$query := len (slice .Messages 1)")
    if last_question or after_question:
        out.action("range $i, $_ := .Messages").action('if eq .Role "user"')
        if last_question:
            out.action("$question = $i")
        if after_question:
            out.action("$query = $i")
        out.action("end").action("end")


def _offered(out: _Text, tools: ToolPieces) -> None:
    """The functions, and the system text that stands with them."""
    out.action('$role := ""').action("if .Tools").action("with index .Messages 0")
    out.action('if eq .Role "system"').piece("system_before").action(".Content").text(tools.after_system)
    out.action("else").text(tools.alone).action("end").action("end")
    out.action("range .Tools").text(tools.before_function).action('template "json" (json .)').action("end")
    out.text(tools.offered).action("end")


def _default(out: _Text, pieces: Pieces, tools: ToolPieces | None) -> None:
    if out.any("default"):
        absent = 'or (ne .Role "system") (not .Content)' if pieces.empty_system == "absent" else 'ne .Role "system"'
        alone = " (not $.Tools)" if tools else ""
        out.action(f"if and (eq $i 0){alone} ({absent})").piece("default").action("end")


def _system_turn(out: _Text, pieces: Pieces, folded: bool, tools: ToolPieces | None) -> None:
    if tools:  # it stands with the functions
        out.action('if and $.Tools (eq $i 0) (eq .Role "system")')
    out.action('else if eq .Role "system"' if tools else 'if eq .Role "system"')
    if pieces.empty_system != "written":
        out.action("if .Content")
    if folded:
        out.action("$system = .Content").action("$held = true")
    else:
        out.piece("system_before").action(".Content").piece("system_after")
    if pieces.empty_system != "written":
        out.action("end")


def _question(out: _Text, pieces: Pieces, folded: bool) -> None:
    if folded:
        place = {"first user": "$held", "last user": "and $held (eq $i $question)", "last message": "and $held $last"}
        out.action(f"if {place[pieces.system]}")
        out.piece("system_before").action("$system").piece("system_after").action("$held = false")
        out.action("else").piece("user_before").action("end")
    else:
        out.piece("user_before")
    out.action(".Content").piece("user_after")


def _answer(out: _Text, tools: ToolPieces | None, thoughts: ThoughtPieces | None) -> None:
    is_open = "and $last (not .ToolCalls)" if tools else "$last"
    if out.same("continued_before", "answer_before"):
        out.piece("answer_before")
    else:
        # Instead of an empty thought stand those that the answer has.
        out.action(f"if and ({is_open}) (not .Thinking)" if _shows(thoughts) else f"if {is_open}")
        out.piece("continued_before").action("else").piece("answer_before").action("end")
    if thoughts:
        _thoughts(out, thoughts)
    if tools:
        # "not (not": by a plain condition Ollama would take this for the place of the calls.
        out.action("if not (not .ToolCalls)").action('template "bare" .Content').action("else").action(".Content")
        out.action("end")
        _calls(out, tools)
    else:
        out.action(".Content")
    if out.any("answer_after"):
        out.action(f"if not ({is_open})" if tools else "if not $last").piece("answer_after").action("end")


def _thoughts(out: _Text, thoughts: ThoughtPieces) -> None:
    """The thoughts of an answer. Ollama knows those in what a model writes by the first and the last text in that place,
    and that a model thinks at all by there being such a place."""
    where = {ALWAYS: "if .Thinking", AFTER_QUESTION: "if and .Thinking (gt $i $query)", NEVER: "if and false .Thinking"}
    out.action(where[thoughts.shown]).text(thoughts.before)
    out.action('template "bare" .Thinking' if _shows(thoughts) else ".Thinking").text(thoughts.after)
    if thoughts.hidden:
        out.action("else if .Thinking").text(thoughts.hidden)
    out.action("end")


def _calls(out: _Text, tools: ToolPieces) -> None:
    """The calls of an answer. Ollama knows one in what a model writes by the first text after `if .ToolCalls`, up to a brace;
    it looks into conditions and loops there, and no further than the first action of another kind (tools/template.go)."""
    out.action("$said := .Content").action("if .ToolCalls").action("range $n, $_ := .ToolCalls")
    out.action("if $n").text(tools.calls.next).action("else if $said").text(tools.calls.after_text)
    out.action("else").text(tools.calls.first).action("end")
    out.action(".Function.Name").text(tools.calls.arguments).action('template "json" (json .Function.Arguments)')
    out.text(tools.calls.end).action("end").action("end")


def _results(out: _Text, pieces: CallPieces) -> None:
    out.action('else if eq .Role "tool"')
    out.action('if ne $role "tool"').text(pieces.results).action("end")
    out.text(pieces.result).action(".Content").text(pieces.result_end)
    out.action('if or $last (ne (index (slice $.Messages $i) 1).Role "tool")').text(pieces.results_end).action("end")


class _Text:
    """A template under way, made of the pieces `on`, and `off` with thinking off. Actions that follow one another stand on
    lines of their own, as people write them."""

    def __init__(self, on: Pieces, off: Pieces) -> None:
        self.on, self.off = on, off
        self.parts: list[str] = []
        self.after_action = False

    def action(self, code: str) -> _Text:
        # "{{-" takes away the white space before it: only ever our own line break, because literal text that ends in
        # white space is followed by a bare "{{".
        prints = code.startswith((".", "$system")) and " = " not in code and " := " not in code
        self.parts.append(f"\n{{{{- {code} }}}}" if self.after_action and not prints else f"{{{{ {code} }}}}")
        self.after_action = True
        return self

    def text(self, literal: str) -> _Text:
        if literal:
            self.parts.append(escape(literal))
            self.after_action = False
        return self

    def piece(self, name: str) -> _Text:
        """The piece of that name."""
        on, off = self._both(name)
        if on == off:
            return self.text(on)
        start = common_prefix((on, off))
        self.text(start)
        if off != start:
            self.action("if $off").text(off.removeprefix(start))
            if on != start:
                self.action("else").text(on.removeprefix(start))
        else:
            self.action("if not $off").text(on.removeprefix(start))
        return self.action("end")

    def _both(self, name: str) -> tuple[str, str]:
        return str(getattr(self.on, name)), str(getattr(self.off, name))

    def any(self, name: str) -> bool:
        """Whether there is such a piece, with thinking on or off."""
        return self._both(name) != ("", "")

    def differs(self, name: str) -> bool:
        """Whether the piece is another one with thinking off."""
        on, off = self._both(name)
        return on != off

    def same(self, one: str, other: str) -> bool:
        """Whether two pieces are the same, with thinking on and off."""
        return self._both(one) == self._both(other)

    def written(self) -> str:
        return "".join(self.parts)


def escape(literal: str) -> str:
    """`literal` as template text: what Go or the Modelfile would not leave alone is written as {{ "..." }}."""

    def written(match: re.Match[str]) -> str:
        text = match[0]
        kept = text.isprintable() and text[0] not in '{"'
        return text if kept else f'{{{{ "{go_string(text)}" }}}}'

    return _SUSPECT.sub(written, literal)


def go_string(text: str) -> str:
    r"""The inside of a Go string literal in ASCII: `"` and `\` escaped, all but plain characters as \u or \U."""
    out = []
    for letter in text:
        if letter in '"\\':
            out.append("\\" + letter)
        elif " " <= letter <= "~":
            out.append(letter)
        else:
            out.append(f"\\u{ord(letter):04x}" if ord(letter) < 0x10000 else f"\\U{ord(letter):08x}")
    return "".join(out)
