"""Pieces of a chat template, written as an Ollama TEMPLATE: Go's text/template over .Messages.

Ollama (template/template.go, since 0.2.2 of July 2024) gives the template .Messages with .Role and .Content, consecutive
messages of one role merged, and every system message among them. A template that names .Messages is executed once for
the whole chat; an answer that comes last is one that the model is to continue.
"""

from __future__ import annotations

import re

from training.ollama.template_parts import Pieces

PLAIN = "{{ .Prompt }}"  # for a model trained on plain text: the prompt as it is, nothing around it

# Looked at more closely: what begins an action, by itself or with the "{{" of an action written after it; three quotes
# (they would end the TEMPLATE in the Modelfile); and everything outside plain ASCII, of which only what Ollama's
# Modelfile reader keeps can stay as it is.
_SUSPECT = re.compile(r'\{(?:\{+|(?![ !#-z|}~\n]))|"{3,}|[^ -~\n]')


def go_template(pieces: Pieces, write_bos: bool = False) -> str:
    """The TEMPLATE that renders as `pieces.join` does.

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
    out.action("range $i, $_ := .Messages").action("$last := eq (len (slice $.Messages $i)) 1")
    _default(out, pieces)
    if pieces.system != "none":
        _system_turn(out, pieces, folded)
    out.action('else if eq .Role "user"' if pieces.system != "none" else 'if eq .Role "user"')
    _question(out, pieces, folded)
    out.action('else if eq .Role "assistant"')
    _answer(out, pieces)
    out.action("end")
    if pieces.generation:
        out.action('if and $last (ne .Role "assistant")').text(pieces.generation).action("end")
    return out.action("end").written()


def _default(out: _Text, pieces: Pieces) -> None:
    if pieces.default:
        absent = 'or (ne .Role "system") (not .Content)' if pieces.empty_system == "absent" else 'ne .Role "system"'
        out.action(f"if and (eq $i 0) ({absent})").text(pieces.default).action("end")


def _system_turn(out: _Text, pieces: Pieces, folded: bool) -> None:
    out.action('if eq .Role "system"')
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


def _answer(out: _Text, pieces: Pieces) -> None:
    if pieces.continued_before == pieces.answer_before:
        out.text(pieces.answer_before).action(".Content")
        if pieces.answer_after:
            out.action("if not $last").text(pieces.answer_after).action("end")
    else:
        out.action("if $last").text(pieces.continued_before).action(".Content")
        out.action("else").text(pieces.answer_before).action(".Content").text(pieces.answer_after).action("end")


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
