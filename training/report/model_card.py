"""README.md in merged/ and adapter/: what somebody needs to know who gets the folder without the run.

No rows, no answers, no paths: the folder is made to be passed on.
"""

from __future__ import annotations

import re
from pathlib import Path

from training import runs
from training.report import verdict
from training.report.as_markdown import inline
from training.report.schema import Report
from training.runs import Facts, Run
from training.system import files, privacy, wording

NAME = "README.md"
# Of the model that comes with this project; its folder says neither.
EMBEDDED, EMBEDDED_LICENCE = "HuggingFaceTB/SmolLM2-135M-Instruct", "apache-2.0"
MOST_READ = 1 << 16  # characters of a base model's README in which its licence is looked for
# A name that YAML and Markdown take as it is.
PLAIN = re.compile(r"[\w.-]+(?:/[\w.-]+)*")


def write(run: Run, report: Report) -> None:
    """Write the card into each of the two folders that is there."""
    base = Facts.read(run.path).base.path
    for folder, library in ((runs.MERGED, "transformers"), (runs.ADAPTER, "peft")):
        place = run.path / folder
        if place.is_dir():
            text = card(report, library, licence(report, base, place))
            files.write_text(place / NAME, text, shared=folder == runs.MERGED)


def licence(report: Report, base: Path, folder: Path) -> str:
    """The licence's name as the base model's card has it; `other` where only its text came along, "" where it is unknown."""
    if report.base.kind == "embedded":
        return EMBEDDED_LICENCE
    try:
        with (base / NAME).open(encoding="utf-8", errors="replace") as file:
            head = file.read(MOST_READ)
    except OSError:
        head = ""
    front = re.match(r"---\n(.*?)\n---", head, re.DOTALL)
    named = re.search(r"^license:\s*([\w.-]+)\s*$", front[1], re.MULTILINE) if front else None
    if named:
        return named[1]
    return "other" if any(folder.glob("LICENSE*")) or any(folder.glob("COPYING*")) else ""


def base_name(report: Report) -> str:
    """What the base model is called, without the place where it lay."""
    if report.base.kind == "embedded":
        return EMBEDDED
    name = report.base.name
    if report.base.kind == "modelscope":
        return name.removeprefix("ms:")
    return name if report.base.kind in ("hub", "ollama") else name.rstrip("/").rpartition("/")[2]


def card(report: Report, library: str, licence: str) -> str:
    """The whole text."""
    base, name = base_name(report), report.name
    front = ["---", f"library_name: {library}"]
    if report.base.kind in ("hub", "modelscope", "embedded") and PLAIN.fullmatch(base):
        front.append(f"base_model: {base}")
    if PLAIN.fullmatch(licence):
        front.append(f"license: {licence}")
    front += ["tags:", "- lora", "- sft", "---", ""]
    what = "A LoRA adapter for" if library == "peft" else "A fine-tuned version of"
    of = {"": "the base model's licence holds; it is not known here", "other": "see the licence file in this folder"}
    lines = [
        f"# {inline(name)}",
        "",
        f"{what} {inline(base)}" + (f" (revision {inline(report.base.revision)})." if report.base.revision else "."),
        "",
        f"- Licence: {of.get(licence, inline(licence))}.",
        *(f"- {inline(line)}" for line in (*_data(report), *_training(report))),
        "",
        *_result(report),
    ]
    return privacy.redact("\n".join([*front, *lines])).rstrip() + "\n"


def _data(report: Report) -> list[str]:
    data = report.data
    if data is None:
        return []
    counts = ", ".join(f"{count:,} {role}" for role, count in data.rows.items())
    tokens = f"; {data.trained_tokens:,} tokens with a loss in each pass" if data.trained_tokens else ""
    return [f"Rows: {counts}{tokens}. The rows are not part of this folder."]


def _training(report: Report) -> list[str]:
    training, settings = report.training, report.settings
    lora, how = settings.get("LoRA", {}), settings.get("Training", {})
    lines = []
    if training:
        passes = f" ({wording.counted(training.epochs, 'epoch')})" if training.epochs else ""
        lines.append(
            f"Training: {wording.counted(training.steps, 'step')}{passes}, learning rate {how.get('LEARNING_RATE')}, seed {report.seed}."
        )
    if lora:
        modules = wording.value_text(lora.get("TARGET_MODULES"))
        lines.append(
            f"LoRA: rank {lora.get('R')}, alpha {lora.get('LORA_ALPHA')}, dropout {lora.get('LORA_DROPOUT')}, on {modules}."
        )
    versions = ", ".join(
        f"{name} {report.versions[name]}"
        for name in ("transformers", "peft", "trl", "torch")
        if name in report.versions
    )
    return [*lines, *([f"Made with {versions}."] if versions else [])]


def _result(report: Report) -> list[str]:
    if report.training is None:
        return []
    return ["## How good it is", "", inline(verdict.verdict(report).text), ""]
