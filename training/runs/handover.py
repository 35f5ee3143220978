"""What training hands over to the export, to an evaluation and to a talk: the run, its settings, and facts in a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from training import settings
from training.data import ChatTemplate, Item
from training.data.private_questions import PrivateQuestion
from training.data.row_texts import RowTexts
from training.errors import UserError
from training.runs import directory
from training.runs.directory import Run
from training.settings import Settings
from training.system import files, foreign_code, foreign_json, records, shell
from training.system.foreign_json import Damaged

FACTS = "export.json"  # in checkpoints/
F16 = "F16"
Kind = TypeVar("Kind", bound="Handover")


@dataclass(frozen=True, kw_only=True)
class BaseOfRun:
    """The base model that a run was trained from.

    `files`: file -> digest, as base_files.of gives them; none for a model of the Hub, and in a run of an older version.
    """

    name: str
    path: Path
    kind: str
    files: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """A prompt that was trained on: its tokens, and how many an answer may take at `most`. `question`: what it asks.

    `wanted`: tokens of the trained answer; 0 where an older version wrote it.
    """

    ids: list[int]
    most: int
    question: str = ""
    wanted: int = 0


@dataclass(frozen=True, kw_only=True)
class Sequence:
    """A tokenised row on which the exported files are compared; `first` is the first token of its answer."""

    ids: list[int]
    first: int


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What can be exported later, again, and without the data file, because training wrote it down.

    `template` is without SYSTEM_PROMPT, which may hold what is nobody's business and stands in the run's config.ini.
    `questions`, `sequences`, `row_texts`: for the checks. `measured`, `asked`: the rows that base and tuned model are
    measured on and asked, and the quantised one, too. `calibration`: tokens of training rows, for an importance matrix.
    `private`: what may draw private things of the rows out. `tools`: the form of the rows' functions and calls (TOOL_FORM),
    "" where none of them has any. Runs of older versions lack the last six.
    """

    base: BaseOfRun
    template: ChatTemplate
    plain: bool
    stops: list[str]
    end_ids: list[int]
    num_ctx: int
    questions: list[Prompt]
    sequences: list[Sequence]
    measured: list[Item] = field(default_factory=list)
    asked: list[Item] = field(default_factory=list)
    calibration: list[int] = field(default_factory=list)
    row_texts: RowTexts = field(default_factory=RowTexts)
    private: list[PrivateQuestion] = field(default_factory=list)
    tools: str = ""

    def write(self, path: Path) -> None:
        """Write the facts into the run directory `path`."""
        record = records.plain(self)
        del record["template"]["system"]
        files.write_json(path / directory.CHECKPOINTS / FACTS, {"v": 1, **record})

    @classmethod
    def read(cls, path: Path) -> Facts:
        """The facts in the run directory `path`. Damaged where the file is not what `write` writes."""
        file = path / directory.CHECKPOINTS / FACTS
        try:
            return records.read(foreign_json.read(file), cls)
        except ValueError as error:
            raise Damaged(
                f"{file}: {error}; without it the run cannot be exported or asked, only trained anew"
            ) from None


@dataclass(frozen=True, kw_only=True)
class Handover:
    """A run that has an adapter: its directory, its own settings, and the facts that training left for those after it."""

    run: Run
    settings: Settings
    facts: Facts

    @classmethod
    def of_run(cls: type[Kind], path: Path) -> Kind:
        """Read a run directory that has an adapter. UserError when there is nothing to export."""
        run = directory.open_run(path)
        if not (run.path / directory.ADAPTER).is_dir() or not (run.path / directory.CHECKPOINTS / FACTS).is_file():
            raise UserError(
                f"{path} has no finished adapter to export; {shell.command('run.sh', '--resume', path)} goes on with its training"
            )
        with directory.reading_settings(run):
            own = settings.load(run.path / directory.CONFIG, check_files=False)
        foreign_code.trust(own.model.trust_remote_code)
        return cls(run=run, settings=own, facts=Facts.read(run.path))

    @property
    def f16(self) -> Path:
        """The 16-bit GGUF: a file of the run when it is asked for, else put aside until everything is checked."""
        wanted = self.settings.quantization.keep_f16 or "f16" in self.settings.quantization.quantization_method
        folder = self.run.path if wanted else self.run.path / directory.CHECKPOINTS
        return folder / f"{self.settings.name}.{F16}.gguf"

    def quantised(self, method: str) -> Path:
        """The file of one method: <name>.Q4_K_M.gguf."""
        return self.f16 if method == "f16" else self.run.path / f"{self.settings.name}.{method.upper()}.gguf"

    @property
    def template(self) -> ChatTemplate | None:
        """The chat template that was trained with; None for plain text."""
        if self.facts.plain:
            return None
        return replace(self.facts.template, system=self.settings.model.system_prompt or None)
