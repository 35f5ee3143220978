"""Pieces of a chat template, written as an Ollama TEMPLATE: Go's text/template over .Messages.

Ollama (template/template.go, since 0.2.2 of July 2024) gives the template .Messages with .Role and .Content, consecutive
messages of one role merged, and every system message among them. A template that names .Messages is executed once for
the whole chat; an answer that comes last is one that the model is to continue. Functions come as .Tools, calls as
.ToolCalls of an answer, what they gave as messages of the role tool, which are not merged.
"""

from __future__ import annotations

import re

from training.ollama.template_parts import Pieces
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


def go_template(pieces: Pieces, write_bos: bool = False, tools: ToolPieces | None = None) -> str:
    """The TEMPLATE that renders as `template_parts.join` does, and with `tools` as `tool_parts.join`.

    `write_bos`: put the BOS into the text. Only for a GGUF whose tokenizer.ggml.add_bos_token is false; otherwise the
    tokenizer adds one, and a second would stand in every prompt.
    """
    out = _Text()
    if write_bos:
        out.text(pieces.bos)
    folded = pieces.system in ("first user", "last user", "last message")
    if folded:
        out.action('$system := ""').action("$held := false")
    if pieces.system == "last user":
        out.action("$question := -1")
        out.action("range $i, $_ := .Messages").action('if eq .Role "user"').action("$question = $i")
        out.action("end").action("end")
    if tools:
        _offered(out, pieces, tools)
    out.action("range $i, $_ := .Messages").action("$last := eq (len (slice $.Messages $i)) 1")
    _default(out, pieces, tools)
    if pieces.system != "none":
        _system_turn(out, pieces, folded, tools)
    out.action('else if eq .Role "user"' if pieces.system != "none" else 'if eq .Role "user"')
    _question(out, pieces, folded)
    out.action('else if eq .Role "assistant"')
    _answer(out, pieces, tools)
    if tools:
        _results(out, tools.calls)
    out.action("end")
    if pieces.generation:
        out.action('if and $last (ne .Role "assistant")').text(pieces.generation).action("end")
    if tools:
        out.action("$role = .Role")
    out.action("end")
    return out.written() + (f"\n{_JSON}" if tools else "")


def _offered(out: _Text, pieces: Pieces, tools: ToolPieces) -> None:
    """The functions, and the system text that stands with them."""
    out.action('$role := ""').action("if .Tools").action("with index .Messages 0")
    out.action('if eq .Role "system"').text(pieces.system_before).action(".Content").text(tools.after_system)
    out.action("else").text(tools.alone).action("end").action("end")
    out.action("range .Tools").text(tools.before_function).action('template "json" (json .)').action("end")
    out.text(tools.offered).action("end")


def _default(out: _Text, pieces: Pieces, tools: ToolPieces | None) -> None:
    if pieces.default:
        absent = 'or (ne .Role "system") (not .Content)' if pieces.empty_system == "absent" else 'ne .Role "system"'
        alone = " (not $.Tools)" if tools else ""
        out.action(f"if and (eq $i 0){alone} ({absent})").text(pieces.default).action("end")


def _system_turn(out: _Text, pieces: Pieces, folded: bool, tools: ToolPieces | None) -> None:
    if tools:  # it stands with the functions
        out.action('if and $.Tools (eq $i 0) (eq .Role "system")')
    out.action('else if eq .Role "system"' if tools else 'if eq .Role "system"')
    if pieces.empty_system != "written":
        out.action("if .Content")
    if folded:
        out.action("$system = .Content").action("$held = true")
    else:
        out.text(pieces.system_before).action(".Content").text(pieces.system_after)
    if pieces.empty_system != "written":
        out.action("end")


def _question(out: _Text, pieces: Pieces, folded: bool) -> None:
    if folded:
        place = {"first user": "$held", "last user": "and $held (eq $i $question)", "last message": "and $held $last"}
        out.action(f"if {place[pieces.system]}")
        out.text(pieces.system_before).action("$system").text(pieces.system_after).action("$held = false")
        out.action("else").text(pieces.user_before).action("end")
    else:
        out.text(pieces.user_before)
    out.action(".Content").text(pieces.user_after)


def _answer(out: _Text, pieces: Pieces, tools: ToolPieces | None) -> None:
    open_ended = "and $last (not .ToolCalls)" if tools else "$last"
    if pieces.continued_before == pieces.answer_before:
        out.text(pieces.answer_before).action(".Content")
        _calls(out, tools)
        if pieces.answer_after:
            out.action(f"if not ({open_ended})" if tools else "if not $last").text(pieces.answer_after).action("end")
    else:
        out.action(f"if {open_ended}").text(pieces.continued_before).action(".Content")
        out.action("else").text(pieces.answer_before).action(".Content")
        _calls(out, tools)
        out.text(pieces.answer_after).action("end")


def _calls(out: _Text, tools: ToolPieces | None) -> None:
    """The calls of an answer. Ollama knows one in what a model writes by the first text after `if .ToolCalls`, up to a brace;
    it looks into conditions and loops there, and no further than the first action of another kind (tools/template.go)."""
    if tools is None:
        return
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
    """A template under way. Actions that follow one another stand on lines of their own, as people write them."""

    def __init__(self) -> None:
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
