"""The numbers of calls and functions: trained as Go's templates write them, which is how a TEMPLATE serves them."""

from __future__ import annotations

import json

import pytest

from training.data import ChatTemplate, Turn, chat_template, tool_form
from training.ollama import go_template

pytestmark = pytest.mark.tiny
JINJA = "{%- for m in messages -%}{%- for c in m.tool_calls or () -%}{{ c.function.arguments | tojson }}{%- endfor -%}{%- endfor -%}"
GO = f'{{{{- range .Messages }}}}{{{{- range .ToolCalls }}}}{{{{ template "json" (json .Function.Arguments) }}}}{{{{- end }}}}{{{{- end }}}}\n{go_template._JSON}'
NUMBERS = (
    "0", "1", "-1", "1.0", "0.5", "-0.1", "100.0", "1e5", "1e15", "1e16", "1.5e16", "1e20", "123456789012345680000.0", "1e21",
    "1.5e21", "1e300", "1.7976931348623157e308", "9007199254740993", "9223372036854775807", "9223372036854775808",
    "18446744073709551616", "12345678901234567890123", "0.001", "0.0001", "0.00012", "0.00001", "1.5e-5", "-1e-5", "1e-6",
    "1.25e-6", "9.99e-7", "1e-7", "-1.5e-7", "1e-9", "1e-10", "1e-100", "5e-324", "3.141592653589793", "0.30000000000000004",
)  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_is_trained_as_go_writes_it(ollama, text: str) -> None:
    number = json.loads(text)
    call = {"id": "a", "type": "function", "function": {"name": "f", "arguments": {"n": number, "in": [{"n": number}]}}}
    trained, _ = tool_form.turn(Turn("assistant", "", more=json.dumps({"tool_calls": [call]})))
    wanted = chat_template.render(ChatTemplate(JINJA, "", tools_by_name=True), [trained])
    sent = [{"role": "assistant", "content": "", "tool_calls": [call]}]
    assert ollama(template=GO, messages=sent)["text"] == wanted
