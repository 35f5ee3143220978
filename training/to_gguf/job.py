"""One run to export: what it is made of, and where its files go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from training import llama, runs
from training.base_model import base_files
from training.data.row_texts import RowTexts
from training.errors import RunError
from training.ollama import Chat
from training.runs import Handover
from training.to_gguf.chat import chat_of


@dataclass(frozen=True)
class Job(Handover):
    """One run to export: its directory, its own settings, and the facts that training left for the export."""

    @property
    def merged(self) -> Path:
        return self.run.path / runs.MERGED

    @property
    def base(self) -> Path:
        """The base model's folder. RunError when it has gone since the training, or is another one."""
        known = self.facts["base"]
        path = Path(known["path"])
        if not (path / "config.json").is_file():
            raise RunError(
                "merge", f"the base model is no longer at {path}; put it back, or train again", what_is_safe(self)
            )
        # Runs from before they were kept have none; a model of the Hub has its commit.
        if before := known.get("files"):
            self._require_same(path, before, known["kind"])
        return path

    def _require_same(self, path: Path, before: dict[str, str], kind: str) -> None:
        if changed := base_files.changed(before, base_files.digests(path, kind)):
            what = f"{', '.join(changed)} of the base model in {path} {'is' if len(changed) == 1 else 'are'} not what was trained on"
            raise RunError("merge", f"{what}; put it back as it was, or train again", what_is_safe(self))

    @property
    def adds_bos(self) -> bool:
        """Whether the finished file's tokenizer puts BOS in front of a prompt by itself."""
        first = self.quantised(self.settings.quantization.quantization_method[0])
        return bool(llama.metadata(first)["vocab"]["add_bos"])

    @property
    def trained_template(self) -> chat.ChatTemplate | None:
        """The chat template that was trained with; None for plain text."""
        return None if self.facts["plain"] else self.template

    @property
    def row_texts(self) -> RowTexts:
        """Texts of the rows that were trained; none in a run of an older version."""
        return RowTexts.of(self.facts.get("row_texts"))

    def chat(self, adds_bos: bool) -> Chat | None:
        """How the model was trained to chat; None for plain text."""
        return None if self.facts["plain"] else chat_of(self.template, adds_bos)


def what_is_safe(job: Job) -> str:
    return (
        f"the adapter is safe in {job.run.path / runs.ADAPTER}; `./run.sh --resume {job.run.path}` does the rest again"
    )
