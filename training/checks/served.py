"""Is what a live Ollama serves what was trained? Proved after every create, before the name stands for the new model."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training import llama, ollama
from training.checks import on_blob, served_answers, served_prompts, served_tools, thinking_served
from training.checks.served_answers import Answers, Question
from training.checks.served_facts import Served
from training.checks.served_prompts import Prompts, Trained
from training.data import chat_template, tool_form
from training.errors import RunError
from training.ollama import CreateRequest, Server, modelfile
from training.to_gguf import reader_metadata
from training.to_gguf.job import Job

OURS, THE_GGUFS, RENDERER, OTHER = "modelfile", "gguf", "renderer", "other"
_RENDERER = re.compile(r"^RENDERER[ \t]+(\S+)", re.MULTILINE | re.IGNORECASE)
TOLD = 3  # failures that are told


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is to be served: how it was trained, the Modelfile, the file (of an adapter the base's; None: not here)."""

    trained: Trained
    request: CreateRequest
    gguf: Path | None = None
    exceptions: Sequence[str] = ()
    questions: Sequence[Question] = ()


@dataclass(frozen=True, kw_only=True)
class Proof:
    """The record, what is said of it in a line, what else is to be said, what is not as trained, and what may help."""

    served: Served
    line: str
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()
    hint: str = ""

    def require(self, safe: str) -> None:
        """RunError where what is served is not what was trained."""
        if not self.failures:
            return
        more = len(self.failures) - TOLD
        told = [*self.failures[:TOLD], *([f"and {more} more"] if more > 0 else [])]
        words = "\n  ".join([f"{self.line}:", *told]) + (f"\n{self.hint}" if self.hint else "")
        raise RunError("ollama", words, safe)


def of_job(server: Server, job: Job, request: CreateRequest) -> Subject:
    """A run's model, as it is to be served from a Modelfile."""
    folder = job.merged if job.merged.is_dir() else job.base
    words = reader_metadata.tokenizer(folder)
    thoughts = any("</think>" in item.expected for item in (*job.facts.asked, *job.facts.measured))
    facts = job.facts
    trained = Trained(
        template=job.template, tokenizer=words, num_ctx=facts.num_ctx, thoughts=thoughts, tools=facts.tools
    )
    # An adapter may be all that the run has; BOS is then the base's, whose tokenizer was trained with.
    adds_bos = job.adds_bos if request.gguf else chat_template.adds_bos(words)
    held = ollama.verify(request.modelfile, job.chat(adds_bos), job.facts.stops)
    questions = served_answers.questions(job.template, words, job.facts.asked, job.facts.num_ctx)
    gguf = request.gguf or on_blob.file_of(server, request.base)
    return Subject(trained=trained, request=request, gguf=gguf, exceptions=held.exceptions, questions=questions)


def prove(server: Server, name: str, subject: Subject) -> Proof:
    """Ask the server for all that tells whether it serves the model as it was trained."""
    version = server.version()
    shown = server.show(name) or {}
    template = used(shown, subject)
    exceptions = subject.exceptions if template != THE_GGUFS else ()
    prompts = served_prompts.compare(server, name, subject.trained, exceptions)
    with _opened(subject) as gguf:
        answers = served_answers.compare(server, name, subject.trained, gguf, subject.questions)
    tools = served_tools.asked(server, name, subject.trained, shown)
    thoughts = thinking_served.asked(server, name, subject.trained, shown, exceptions)
    failures = [*prompts.failures, *answers.failures, *(thoughts.failures if template == OURS else ())]
    if tools and subject.trained.tools != tool_form.OWN:
        failures += tools.failures
    if template == OTHER and prompts.rendered_differently is None:
        failures.insert(0, "another chat template stands there than the one of the Modelfile and the one in the GGUF")
    served = Served(
        server=version,
        name=name,
        template=template,
        conversations=prompts.conversations,
        rendered_differently=prompts.rendered_differently,
        counted_differently=prompts.counted_differently if prompts.counted else None,
        first_tokens_differently=answers.first_tokens_differently,
        near_ties=answers.near_ties,
        stops=f"{answers.stops} of {answers.questions}",
        tools=served_tools.figure(tools),
    )
    notes = [
        *answers.notes,
        *_notes(prompts, template),
        *_thoughts(subject.trained, shown),
        *(thinking_served.notes(thoughts) if template != OURS else ()),
        *served_tools.notes(server, name, tools, subject.trained),
    ]
    line = _line(served, prompts, answers, thinking_served.figure(thoughts), failures)
    hint = _hint(template, subject) if failures else ""
    return Proof(served=served, line=line, notes=tuple(notes), failures=tuple(failures), hint=hint)


@contextmanager
def _opened(subject: Subject) -> Iterator[llama.Process | None]:
    """llama.cpp on the file, where that is here."""
    if subject.gguf is None:
        yield None
        return
    with llama.opened(subject.gguf, subject.request.adapter) as process:
        yield process


def _hint(template: str, subject: Subject) -> str:
    """Where the server uses another template than it should, it can be told which to use, since 0.30."""
    wanted = subject.request.template is not None
    if template in (OURS, RENDERER) or (template == THE_GGUFS and not wanted):
        return ""
    which = "TEMPLATE" if wanted else "the chat template in the GGUF"
    return f"From Ollama {modelfile.NATIVE} on, OLLAMA_GO_TEMPLATE={str(wanted).lower()} in its server's environment makes it use {which}"


def used(shown: Mapping[str, Any], subject: Subject) -> str:
    """Which template the server uses, by what /api/show says. It shows the one in use since 0.30, its own before."""
    text = str(shown.get("template") or "")
    trained = subject.trained.template
    if _RENDERER.search(str(shown.get("modelfile") or "")) or shown.get("renderer"):
        return RENDERER
    if subject.request.template is not None and text == subject.request.template:
        return OURS
    if trained is not None and modelfile.fingerprint(text) == modelfile.fingerprint(trained.exported):
        return THE_GGUFS
    return OTHER


def _notes(prompts: Prompts, template: str) -> list[str]:
    notes = []
    if prompts.excused:
        kinds = ", ".join(dict.fromkeys(prompts.excused))
        notes.append(f"some chats are written otherwise, as is known of this template or of llama.cpp: {kinds}")
    if template == RENDERER:
        notes.append("this Ollama writes prompts with a renderer of its own for this architecture")
    return notes


def _thoughts(trained: Trained, shown: Mapping[str, Any]) -> list[str]:
    """What a server makes of thoughts, where some were trained and it does not know them with this model."""
    capabilities = shown.get("capabilities")
    if not trained.thoughts or not isinstance(capabilities, list) or "thinking" in capabilities:
        return []
    return [
        "rows were trained with thoughts, which this Ollama does not know with this model: they stand in the text of an "
        f"answer, and requests with think are refused; Ollama {modelfile.NATIVE} and later take them out"
    ]


_USES = {
    OURS: "the Modelfile's TEMPLATE",
    THE_GGUFS: "the chat template in the GGUF",
    RENDERER: "its own renderer",
    OTHER: "another template",
}


def _line(served: Served, prompts: Prompts, answers: Answers, thoughts: str, failures: Sequence[str]) -> str:
    """What was found, in one line."""
    said = []
    if served.rendered_differently is None:
        said.append("it does not tell how it writes prompts")
    else:
        equal = served.conversations - served.rendered_differently - len(prompts.excused)
        said.append(f"{equal} of {served.conversations} conversations written as trained")
    if prompts.counted:
        said.append(f"{prompts.counted - prompts.counted_differently} of {prompts.counted} read as the tokens trained")
    if answers.first_tokens_differently is not None and answers.questions:
        equal = answers.questions - answers.first_tokens_differently
        ties = f", {answers.near_ties} by a near tie" if answers.near_ties else ""
        said.append(f"{equal} of {answers.questions} answers begin as llama.cpp's{ties}")
    if answers.questions:
        said.append(f"{served.stops} stop by themselves")
    if served.tools:
        said.append(f"with functions {served.tools}")
    if thoughts:
        said.append(f"with thoughts {thoughts}")
    verdict = "does not serve what was trained" if failures else "serves what was trained"
    return f"Ollama {served.server} {verdict}, by {_USES[served.template]}: {', '.join(said)}"
