"""The stages of a run after its plan: train, evaluate, export. Each leaves its figures in status.json when it is done."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from loguru import logger

from training import evaluation, runs
from training.base_model import base_files
from training.data import Item, dataset, held_out, private_questions, replay
from training.data.encoding import end_ids
from training.data.private_questions import PrivateQuestion
from training.distributed import Crew, crew
from training.errors import Interrupted, RunError
from training.evaluation import ledger, scoring
from training.ollama import modelfile
from training.pipeline import export_stages
from training.plan import Plan
from training.plan import plan as reader_view
from training.report import gathering
from training.runs import Facts, Run, Stage, checkpoint, progress
from training.runs.handover import BaseOfRun, Prompt, Sequence
from training.settings import Settings
from training.system import files, forkserver, paths, records
from training.system.events import Events
from training.system.privacy import redact
from training.system.signals import Signals
from training.system.wording import shorten
from training.to_gguf import importance
from training.train import Loaded, Session, adapter_files, loop, sharding, state, team

if TYPE_CHECKING:
    import datasets

    from training.fast_cpu.decoder import Decoder

# For samples and checks; tokens a sequence at most.
QUESTIONS, TRAINED_PROMPTS, HELD_OUT, LONGEST = 3, 4, 16, 512
# Held-out rows whose loss is taken, and those that are asked: what a short run can afford.
MEASURED, ASKED = 32, 8
# Tokens of those whose loss is taken, as long as so many rows are among them; a long training affords this share of its own.
TOKENS, LEAST, SHARE = 2048, 8, 0.05
# Tokens that an answer may take on a CPU at least, before its row decides, and those of the training that afford it one more:
# the next token of all answers takes about as long as 40 tokens of a training there (SmolLM2-135M, tuned, base and quantised).
SHORT_ANSWER, FOR_ONE = 128, 400
# Training rows among which prompts are looked for, and tokens of an answer up to which none is too long.
LOOKED_AT, SHORT = 64, 64
ANSWERED = 0.8  # of the evaluation, about; the rest is the ledger of rows
LOGGED = 200  # characters of a question or an answer in the log
CALIBRATED = 1024  # training rows that are looked at for importance.MOST tokens


@dataclass(frozen=True)
class Rows:
    """What a run is measured on. `measured`: rows kept out of the training, at most MEASURED of them; empty when there are
    none. `asked`: some of them, or of the training rows then."""

    measured: list[Item]
    asked: list[Item]


@contextmanager
def trained(
    plan: Plan,
    loaded: Loaded,
    rows: Rows,
    run: Run,
    events: Events,
    signals: Signals,
    others: Crew | None = None,
) -> Iterator[Decoder | None]:
    """Train, with the `others` if any, and keep what the later stages need; the adapter is on the disk within the block.

    There the model can be asked: the others take part in that where it is spread over them, and have ended where not. Gives
    the hand-written layers for CPUs, where it was trained with them on the exact weights.
    """
    began = time.perf_counter()
    run.update(stage="train")
    end_ids = ends(plan)
    facts(plan, rows, end_ids).write(run.path)
    order = others.order if others else crew.order_of(plan, marks(plan), run.path)
    if others:
        others.wait()
    with ExitStack() as kept:
        joined = kept.enter_context(others.joined() if others else team.joined(order.place, order.settings))
        sharding.spread(loaded.model, joined, plan.settings)
        session = Session(
            settings=plan.settings,
            run=run,
            events=events,
            signals=signals,
            watch=state.watch(order, joined),
            tokenizer=loaded.tokenizer,
            total=plan.steps,
            validates=plan.validation is not None,
            questions=held_out.asked(rows.asked, QUESTIONS),
            end_ids=end_ids,
            crew=others,
        )
        result = loop.train(loaded, order, session)
        if not session.watch.spread:
            kept.close()
            if others:
                # From here on nothing depends on how they end.
                others.end()
        _finish_training(plan, loaded, run, events, result, round(time.perf_counter() - began, 1))
        if signals.stop is not None:  # it came with the last step: the training is done, the rest is for --resume
            words = f"stopped after training; the adapter is safe, {checkpoint.does_the_rest(run.path)}"
            raise Interrupted(signals.stop, words)
        with sharding.led(loaded.model, joined) if session.watch.spread else nullcontext():
            yield session.trainer.exact_layers()


def _finish_training(plan: Plan, loaded: Loaded, run: Run, events: Events, result: loop.Result, seconds: float) -> None:
    """Keep what the training came to."""
    trainable = sum(p.numel() for p in loaded.model.parameters() if p.requires_grad)
    fingerprint = checkpoint.kept(marks(plan))
    run.finish_stage(
        "train", {**records.plain(result), "seconds": seconds, "trainable": trainable, "fingerprint": fingerprint}
    )
    logger.info("adapter saved in {}", run.path / runs.ADAPTER)
    events.emit("stage", name="train", seconds=seconds)


def evaluate_stage(
    plan: Plan, loaded: Loaded, rows: Rows, run: Run, events: Events, layers: Decoder | None = None
) -> None:
    """Ask the base model and the tuned one the same questions; compare their losses where rows were kept for that.

    `layers`: what `trained` gives; a run that was resumed after its training makes them again.
    """
    began = time.perf_counter()
    far = told_of(run, "evaluate", events)
    far.begin()
    if run.status.get("resumed_after_training"):
        adapter_files.load_trained(loaded.model, run.path / runs.ADAPTER, plan.settings)
        layers = loop.layers_again(loaded.model, run.path / runs.CHECKPOINTS, plan.settings)
    switchable = plan.settings.lora.bias == "none"
    longest = plan.settings.model.max_seq_length
    general = [] if plan.data.plain else held_out.general(plan.template, plan.tokenizer, longest)
    found = evaluation.evaluate(
        loaded.model, loaded.tokenizer, ends(plan), rows.measured, rows.asked, general, switchable,
        lambda share: far(ANSWERED * share), layers,
    )  # fmt: skip
    tell_answers(found.samples[:QUESTIONS])
    if found.scores:
        logger.info(
            "evaluation on rows that were not trained on: {}", scoring.conclusion([*found.scores, *found.general])
        )
    kept = row_ledger(plan, loaded, run, switchable, lambda share: far(ANSWERED + (1 - ANSWERED) * share), layers)
    seconds = round(time.perf_counter() - began, 1)
    run.finish_stage(
        "evaluate",
        {
            "seconds": seconds,
            "samples": [records.plain(sample) for sample in found.samples],
            "scores": [score.left() for score in found.scores],
            "general": [score.left() for score in found.general],
            "ledger": records.plain(kept),
        },
    )
    events.emit("stage", name="evaluate", seconds=seconds)


def tell_answers(samples: list[evaluation.Sample]) -> None:
    """Log questions with the answers of the base model, which may be empty, and of the tuned one."""
    for sample in samples:
        texts = sample.question, "not asked" if sample.before is None else sample.before, sample.after
        logger.info("asked: {}\n  before: {}\n  after:  {}", *(shorten(redact(text), LOGGED) for text in texts))


def row_ledger(
    plan: Plan,
    loaded: Loaded,
    run: Run,
    switchable: bool,
    tell: Callable[[float], None],
    layers: Decoder | None = None,
) -> evaluation.Ledger:
    """Write what the training did to the rows into the run's folder; gives what the report tells of it."""
    found: list[evaluation.Entry] = []
    if switchable:
        trained = run.stage("train") or {}
        allowed = ledger.budget(trained.get("train_seconds", 0.0))
        found = ledger.take(loaded.model, plan.train, plan.data.contradictions, allowed, tell, layers)
        files.write_text(run.path / runs.ROWS, ledger.table(found))
    kept = ledger.ledger(found, plan.data.different)
    if told := ", ".join(f"{count:,} {kind}" for kind, count in kept.counts.items() if count):
        logger.info("of {:,} of {:,} rows that were learned: {}; see {}", kept.measured, kept.learned, told, runs.ROWS)
    return kept


def judge(settings: Settings, run: Run, events: Events) -> None:
    """Say so when the tuned model is worse than the base; FAIL_IF_WORSE makes it a failure."""
    words = gathering.worse(run, best=bool(settings.training.early_stopping_patience))
    if not words:
        return
    if settings.training.fail_if_worse:
        raise RunError(
            "evaluate",
            words,
            f"the adapter is in {run.path / runs.ADAPTER}; lower LEARNING_RATE or the number of steps",
        )
    if words in run.status.get("warnings", []):  # said before the run was resumed
        return
    logger.warning(words)
    run.update(warnings=[*run.status.get("warnings", []), words])
    events.emit("warning", message=words)


def told_of(run: Run, stage: Stage, events: Events) -> progress.Teller:
    """Who tells how far a stage is that is done in this process."""

    def hear(reached: progress.Reached) -> None:
        events.emit("progress", stage=reached.stage, progress=reached.progress, left=round(reached.left, 1))

    return progress.Teller(run, stage, hear)


def export_stage(run: Run, events: Events) -> None:
    """Merge, convert, quantise, write the Modelfile and check it all, in a process without the training's memory."""
    child = forkserver.popen(paths.TRAINING / "export.py", [run.path], errors=False)
    said: dict[str, Any] = {}
    try:
        for line in child.stdout:
            said = json.loads(line)
            if "seconds" in said:
                events.emit("stage", name=said["stage"], seconds=said["seconds"])
            if "progress" in said:
                events.emit("progress", stage=said["stage"], progress=said["progress"], left=said["left"])
        code = child.wait()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    finally:
        run.reload()
    # The code may be lost, where this process was told to ignore the ends of its children.
    if code or run.stage("check") is None:
        raise export_stages.failure(run, code, said)


def marks(plan: Plan) -> dict[str, Any]:
    """The fingerprint of the run that a plan leads to."""
    found = checkpoint.fingerprint(plan.settings, _content(plan), plan.base, plan.template.jinja)
    if not plan.data.plain:
        found[checkpoint.FUNCTIONS] = checkpoint.BY_NAME if plan.template.tools_by_name else checkpoint.AS_HANDED
    if plan.replay is None or not plan.replay.sha256:
        return found
    # The base model's answers; those of a REPLAY_FILE are among the data files.
    return found | {f"{replay.FILE} SHA-256": plan.replay.sha256}


def _content(plan: Plan) -> str:
    """What the data files hold, whatever they are called: of several for training their order and shares count as well."""
    digests = dict(plan.data.sha256)
    named = dataset.training_files(plan.settings.dataset)
    if len(named) == 1 and named[0].share == 1:
        return " ".join(sorted(digests.values()))
    listed = [f"{digests.pop(str(one.path), '')}*{one.share:g}" for one in named]
    return " ".join([*listed, *sorted(digests.values())])


def ends(plan: Plan) -> list[int]:
    """The ids of all tokens that end an answer: the template's turn end, eos, and those of generation_config.json."""
    return end_ids(plan.template, plan.tokenizer, plan.base)


def held_out_rows(plan: Plan) -> Rows:
    """Rows of the test split where there is one, else of the validation rows; questions of the training rows else."""
    kept = next((rows for rows in (plan.data.test, plan.data.validation) if rows is not None), None)
    trained = plan.steps * plan.settings.rows_a_step * plan.summary.tokens / max(1, len(plan.train))
    longest_answer = held_out.LONGEST_ANSWER
    if plan.settings.hardware.device == "cpu":
        longest_answer = min(longest_answer, max(SHORT_ANSWER, int(trained / FOR_ONE)))
    found = _items(plan, plan.data.train if kept is None else kept, MEASURED, longest_answer)
    found = held_out.bounded(found, max(TOKENS, int(SHARE * trained)), LEAST)
    return Rows([] if kept is None else found, held_out.asked(found, ASKED))


def trained_prompts(plan: Plan) -> list[Prompt]:
    """A few prompts that were trained on: the checks of the export see whether their answers stop.

    Those with the shortest answers, for an answer that is cut off shows nothing; evenly spread where many are SHORT.
    """
    found = [item for item in _items(plan, plan.data.train, LOOKED_AT) if item.prompt]
    limits = sorted(item.most for item in found)[:TRAINED_PROMPTS]
    short = [item for item in found if item.most <= max(SHORT, *limits[-1:], 0)]
    chosen = held_out.asked(short, TRAINED_PROMPTS)
    return [Prompt(ids=item.prompt, most=item.most, question=item.question, wanted=item.wanted) for item in chosen]


def _items(plan: Plan, rows: datasets.Dataset, most: int, longest_answer: int = held_out.LONGEST_ANSWER) -> list[Item]:
    longest = plan.settings.model.max_seq_length
    return held_out.items(plan.template, plan.tokenizer, rows, most, longest, longest_answer)


def held_out_sequences(plan: Plan) -> list[Sequence]:
    """Tokenised rows on which the exported files are compared."""
    rows = plan.validation if plan.validation is not None else plan.train
    chosen = rows.select(held_out.spread(len(rows), HELD_OUT))
    return [Sequence(ids=row["input_ids"][:LONGEST], first=min(row["prompt_length"], LONGEST - 1)) for row in chosen]


def calibration(plan: Plan) -> list[int]:
    """Tokens of training rows from which an importance matrix can be made, in this export or in a later one."""
    rows = plan.sequences
    chosen = rows.select(held_out.spread(len(rows), CALIBRATED))
    return importance.joined([ids[:LONGEST] for ids in chosen["input_ids"]])


def _private(plan: Plan) -> list[PrivateQuestion]:
    """What may draw private things out of the model that was trained on them; nothing where they are not looked for."""
    if plan.data.plain or plan.settings.dataset.on_private == "off":
        return []
    longest = plan.settings.model.max_seq_length
    return private_questions.questions(plan.template, plan.tokenizer, plan.data.train, longest)


def facts(plan: Plan, rows: Rows, end_ids: list[int]) -> Facts:
    """What the export needs of a plan. `rows`: what base and tuned model are measured on, and the quantised one, too."""
    decoded = [str(plan.tokenizer.decode([number])) for number in end_ids]
    base = plan.base
    return Facts(
        base=BaseOfRun(name=base.name, path=base.path, kind=base.kind, files=base_files.of(base)),
        template=plan.template,
        plain=plan.data.plain,
        stops=modelfile.stop_texts(plan.template.eos, plan.template.end_tokens, decoded),
        end_ids=end_ids,
        num_ctx=plan.settings.model.max_seq_length,
        questions=trained_prompts(plan),
        sequences=held_out_sequences(plan),
        measured=rows.measured,
        asked=rows.asked,
        calibration=calibration(plan),
        row_texts=reader_view.of_plan(plan, reader_view.KEPT_CHARACTERS).without_secrets(),
        private=_private(plan),
        tools=plan.settings.dataset.tool_form if plan.data.tools else "",
    )
