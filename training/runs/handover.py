"""What training hands over to the export, to an evaluation and to a talk: the run, its settings, and facts in a file."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from training import settings
from training.data import ChatTemplate
from training.errors import UserError
from training.runs import directory
from training.runs.directory import Run
from training.system import foreign_code

FACTS = "export.json"  # in checkpoints/: what the export must know of the base, the template and the held-out rows
F16 = "F16"
Kind = TypeVar("Kind", bound="Handover")


@dataclass(frozen=True)
class Handover:
    """A run that has an adapter: its directory, its own settings, and the facts that training left for those after it."""

    run: Run
    settings: Any
    facts: dict[str, Any]

    @classmethod
    def of_run(cls: type[Kind], path: Path) -> Kind:
        """Read a run directory that has an adapter. UserError when there is nothing to export."""
        run = directory.open_run(path)
        facts = run.path / directory.CHECKPOINTS / FACTS
        if not (run.path / directory.ADAPTER).is_dir() or not facts.is_file():
            raise UserError(
                f"{path} has no finished adapter to export; ./run.sh --resume {path} goes on with its training"
            )
        given = settings.load(run.path / directory.CONFIG, check_files=False)
        foreign_code.trust(given.model.trust_remote_code)
        return cls(run, given, json.loads(facts.read_text(encoding="utf-8")))

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
    def template(self) -> ChatTemplate:
        """The chat template that was trained with."""
        fields = dict(self.facts["template"])
        fields["system"] = self.settings.model.system_prompt or None
        fields["end_tokens"] = tuple(fields["end_tokens"])
        fields["today"] = fields["today"] and date.fromisoformat(fields["today"])
        return ChatTemplate(**fields)
