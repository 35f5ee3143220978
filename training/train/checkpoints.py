"""The trainer's part that writes whole checkpoints, from which a run goes on bit for bit."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from training.runs import checkpoint
from training.train import random_state
from training.train.mixin import Mixin
from training.train.random_state import RandomState

if TYPE_CHECKING:
    import torch

# The trainer's files that nothing reads again: PEFT's empty model card, a pickle, the base's own tokenizer.
NOT_KEPT = ("README.md", "training_args.bin", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


class Checkpoints(Mixin):
    """Checkpoints with a manifest, written by rank 0 with the random states of all ranks."""

    # Where the trainer writes its files just now.
    _run_folder: str | None = None
    # In rank 0: what the ranks have told of their random states.
    _states: list[object]

    def _save_checkpoint(self, model: torch.nn.Module, trial: object) -> None:
        watch, step = self.watch, self.state.global_step
        self._states = watch.team.gather(random_state.told(self._state_to_resume_from()))
        # Rank 0 writes for all.
        if watch.team.rank:
            return
        with checkpoint.writing(watch.folder, watch.manifest(step)) as partial:
            target = partial.with_name(partial.name.replace(".partial", ".files.partial"))
            self._run_folder = str(target)
            try:
                super()._save_checkpoint(model, trial)
                for file in sorted((target / f"checkpoint-{step}").iterdir()):
                    file.replace(partial / file.name)
            finally:
                self._run_folder = None
                shutil.rmtree(target, ignore_errors=True)
            for name in NOT_KEPT:
                (partial / name).unlink(missing_ok=True)
        checkpoint.rotate(watch.folder, watch.keep, step)

    def _get_output_dir(self, trial: object) -> str:
        return self._run_folder or super()._get_output_dir(trial)

    def _save_rng_state(self, output_dir: str) -> None:
        import torch

        for rank, told in enumerate(self._states):
            state = random_state.named(random_state.heard(told), alone=len(self._states) == 1)
            torch.save(state, Path(output_dir) / self._states_file(rank))

    def _states_file(self, rank: int) -> str:
        """Where the trainer looks for the random state of a rank."""
        return f"rng_state_{rank}.pth" if self.watch.team.size > 1 else "rng_state.pth"

    def _state_to_resume_from(self) -> RandomState:
        """A partial accumulation is thrown away on resume, and with it the randomness that it used up."""
        return (self.watch.random_state if self.watch.in_step else None) or random_state.take()

    def _load_rng_state(self, checkpoint: str | None) -> None:
        super()._load_rng_state(checkpoint)
        if checkpoint is not None:
            own = Path(checkpoint) / self._states_file(self.watch.team.rank)
            if own.is_file():
                random_state.put_back_xpu(own)
            else:
                # As many processes as now have not written it: the first one's state is in any.
                random_state.put_back_of_first(Path(checkpoint))
        self.watch.random_state = random_state.take()

    def create_model_card(self, *args: object, **kwargs: object) -> None:
        """No model card: report.md says what was trained."""
