"""Everything short of training: look at the machine, the model and every row, and say what will happen.

A run starts only when all of it went well; `./run.sh --check` ends here. Nothing is written under OUTPUT_DIR.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from loguru import logger

from training import base_model, llama, ollama
from training.base_model import BaseModel, leftovers, weights_fit
from training.checks import gguf_files
from training.checks.as_read import Difference, differences, read_when_composed, why_different
from training.data import BadRow, ChatTemplate, Data, chat_template, dataset, hub_files, serving, tokenising, tool_form
from training.data import replay as replay_rows
from training.data.record import SHOWN, place
from training.data.row_texts import RowTexts, row_texts
from training.data.tokenising import Summary
from training.errors import UserError
from training.plan import choices, disk_space, memory, memory_fit, replayed, served_tools, system_text, traffic
from training.plan.choices import choose_for_rows, fit_to_model
from training.plan.replayed import Replay
from training.runs import began, open_run
from training.settings import Settings, clamp, contradictions
from training.system import foreign_code, paths, privacy, this_machine, wording
from training.system.this_machine import Machine
from training.system.wording import gigabytes
from training.to_gguf import trial
from training.to_gguf.chat import chat_of, functions_by_name
from training.train import engine

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

CACHE = paths.CACHE / "rows"
NAMED = 5  # rows left out that the log names
LOOKED_AT = 64  # rows that are asked whether they begin alike
SECRET_SHIPPED = (
    "{} holds what looks like a password or a key: it is hidden in logs and reports only. The model is trained with it, and "
    "the Modelfile gives it to everybody who runs the model; take it out of the text if that is not meant"
)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run that can start: all choices made, all rows read and tokenised."""

    settings: Settings
    machine: Machine
    base: BaseModel
    tokenizer: PreTrainedTokenizerBase
    template: ChatTemplate
    data: Data
    train: datasets.Dataset  # with input_ids and labels
    validation: datasets.Dataset | None  # the same
    test: datasets.Dataset | None  # the same: rows kept for a last test (TEST_SPLIT)
    summary: Summary  # of the training rows
    rejected: list[BadRow]
    steps: int
    disk: dict[str, int]  # bytes on the way and at the end, by what takes them
    memory: dict[str, int]  # bytes while it trains, by what takes them
    packs: bool = False  # frozen weights are laid out for their products
    replay: Replay | None = None  # rows that are trained on beside the user's own, which all the above is of

    @property
    def sequences(self) -> datasets.Dataset:
        """All that is trained on: the user's own rows, and the replay rows as soon as they are there."""
        return replayed.joined(self.train, self.replay)

    @property
    def rows_an_epoch(self) -> int:
        """Sequences of one pass over all that is trained on."""
        return len(self.train) + (self.replay.count if self.replay else 0)

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that there may be."""
        return max(self.summary.total.longest, self.replay.longest if self.replay else 0)

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training rows."""
        return self.settings.steps_per_epoch(self.rows_an_epoch)


def prepare(
    settings: Settings, today: date | None = None, on_disk: int = 0, weights: bool = True, run: Path | None = None
) -> Plan:
    """Check and choose everything, in the order of the run. Raises UserError or MachineError; logs what it finds.

    Of a run that is resumed, `today`: the date on which it began, for the templates that write one into the prompt;
    `on_disk`: the bytes that it has written already; `run`: its directory, in which the base model's answers may be, and what was
    decided when it began.
    Without `weights` a model on the Hub is not downloaded for it.
    """
    foreign_code.trust(settings.model.trust_remote_code)
    this_machine.show_one_card(settings.hardware.device)
    machine = this_machine.inspect()
    for line in machine.lines():
        logger.info(line)
    settings = choices.decide(settings, machine)
    if problems := [message for _, message in contradictions.find(settings)]:
        raise UserError(problems)
    choices.check_cards(settings)
    choices.check_writable(settings.training.output_dir)
    memory_fit.check_before_download(settings, machine)
    if settings.model.system_prompt and privacy.redact(settings.model.system_prompt) != settings.model.system_prompt:
        logger.warning(SECRET_SHIPPED, settings.place("Model.SYSTEM_PROMPT"))
    # Before the model, which is larger: a name that means no rows is told in seconds.
    settings = hub_files.pinned(settings, logger.info)
    base = base_model.locate(settings.model, say=logger.info, weights=weights)
    for line in leftovers.words(base.path):
        logger.warning(line)
    settings = fit_to_model(choices.pin(settings, base), base)
    methods = settings.quantization.quantization_method
    # The trial goes on in another process while the rows are read.
    with trial.trial(base.config, base.path, methods) as tried:
        engine.start(settings)
        weights_fit.check(base.path, base.config, settings.model.trust_remote_code)
        if settings.lora.use_dora:
            weights_fit.check_dora(base.path, settings.lora.target_modules)
        plan = _read_rows(settings, machine, base, today, on_disk, run)
        if run is not None:
            plan = with_answers(plan, run)
        figures = _waited(tried, trains=weights)
        choices.check_window(figures, plan.longest)
        hold(figures["vocabulary"], plan)
    if "note" in figures:
        logger.warning("no small {} could be tried in llama.cpp: {}", base.config.get("model_type"), figures["note"])
    logger.info(
        "converter and quantiser tried on a small {architecture}: {convert_seconds} s and {quantise_seconds} s",
        **figures,
    )
    return plan


def _waited(tried: Callable[[], dict[str, Any]], trains: bool) -> dict[str, Any]:
    """What the trial found; what the training will need is imported while that is awaited."""
    if trains:
        engine.import_trainer()
    return tried()


def _read_rows(
    settings: Settings, machine: Machine, base: BaseModel, today: date | None, on_disk: int, run: Path | None
) -> Plan:
    """The part of the plan that follows from the rows."""
    tokenizer = engine.tokenizer(base)
    template = chat_template.choose(base, settings, tokenizer, today)
    logger.info("chat template: {}", template.source)
    data = dataset.load(settings, CACHE, say=logger.info)
    _tell(data, settings)
    if not data.plain and settings.dataset.tool_form == tool_form.OLLAMA and _may_order(run):
        template = functions_by_name(template)
    sequences = _tokenise(data, template, tokenizer, settings)
    choices.check_rows(len(sequences.train), settings)
    if data.tools:
        served_tools.say(data.tools, template)
    if not data.plain:
        template = _as_served(template, tokenizer, sequences.train)
    summary = tokenising.summary(sequences.train, tokenizer)
    replay = replayed.planned(settings, data, template, tokenizer, sequences.replay)
    expected = replayed.expected(summary, replay)
    settings = choose_for_rows(settings, base, expected, machine, _alike(sequences.train, replay))
    steps = settings.total_steps(expected.sequences)
    settings = clamp(settings, steps)
    _try_modelfile(settings, template, data.plain)
    disk = _room(settings, base, machine, steps, on_disk)
    model, adapter = memory.shape(base.config, base.parameters), disk_space.adapter_parameters(settings, base)
    settings = memory_fit.offloaded(settings, model, expected.total.longest, machine, adapter)
    if too_little := memory_fit.check(settings, model, expected.total.longest, machine, adapter):
        logger.warning(too_little)
    packs = memory_fit.packs(settings, model, expected.total.longest, machine, adapter)
    return Plan(
        settings=settings,
        machine=machine,
        base=base,
        tokenizer=tokenizer,
        template=template,
        data=data,
        train=sequences.train,
        validation=sequences.validation,
        test=sequences.test,
        summary=summary,
        rejected=sequences.rejected,
        steps=steps,
        disk=disk,
        memory=memory.estimate(settings, model, expected.total.longest, adapter, packs),
        packs=packs,
        replay=replay,
    )


def _tell(data: Data, settings: Settings) -> None:
    """Log what was found in the rows, and which settings are not used."""
    for warning in data.warnings:
        logger.warning(warning)
    for note in (*data.notes, *contradictions.unused(settings)):
        logger.info(note)


def _may_order(run: Path | None) -> bool:
    return began.may_order_functions(open_run(run) if run else None)


def _room(settings: Settings, base: BaseModel, machine: Machine, steps: int, on_disk: int) -> dict[str, int]:
    """The bytes that a run takes on the disk, by what takes them. UserError or MachineError where there is no room."""
    disk = disk_space.disk_needed(settings, base, steps)
    still_needed = max(disk_space.MARGIN, sum(disk.values()) - on_disk)
    choices.check_disk(settings.training.output_dir, still_needed, disk_space.words(disk))
    disk_space.check_importance(settings, base, machine)
    return disk


def with_answers(plan: Plan, run: Path) -> Plan:
    """The plan with the base model's answers as its replay rows, where they are awaited, and in the run's directory."""
    path = run / replay_rows.FILE
    if plan.replay is None or not replayed.awaited(plan.replay) or not path.is_file():
        return plan
    ways = plan.settings, plan.template, plan.tokenizer
    return replace(plan, replay=replayed.answered(plan.replay, *ways, path, CACHE))


def _alike(train: datasets.Dataset, replay: Replay | None) -> int:
    """With how many equal tokens rows begin, as far as some of them from all over the dataset tell."""
    some = [*train.select(range(0, len(train), max(1, len(train) // LOOKED_AT)))["input_ids"][:]]
    some += replay.beginnings if replay else ()
    # It compares lists as it does texts.
    return len(os.path.commonprefix([list(ids) for ids in some])) if len(some) > 1 else 0


def lines(plan: Plan) -> list[str]:
    """The plan, for the log and for --check."""
    settings, counts = plan.settings, plan.data.counts
    training = settings.training
    out = [
        f"{name} = {value} ({origin})"
        for name, value, _, origin in settings.differences()
        if not _automatic(settings, name)
    ]
    out += [f"{name} = {value}: {reason}" for name, value, reason in settings.choices]
    out += system_text.line(plan.template)
    held_out = f", {counts.validation:,} to validate" if plan.validation is not None else ", no validation"
    out.append(f"rows: {counts.train:,} to train{held_out}" + (f", {counts.test:,} to test" if counts.test else ""))
    out += plan.replay.lines() if plan.replay else ()
    out += plan.summary.lines()
    epochs = plan.steps / plan.steps_per_epoch
    why = "MAX_STEPS" if training.max_steps > 0 else f"NUM_TRAIN_EPOCHS = {training.num_train_epochs:g}"
    shared = f" in {settings.processes} processes" if settings.processes > 1 else ""
    steps, rows = wording.counted(plan.steps, "step"), wording.counted(settings.rows_a_step, "row")
    out.append(f"{steps} of {rows}{shared} ({why}), {wording.counted(epochs, 'epoch')}")
    # The sizes are read from the model's files, and most plans need none.
    if settings.processes > 1 or settings.hardware.link_gbps != "auto":
        bus = memory_fit.bus_line(settings, memory.shape(plan.base.config, plan.base.parameters))
        out += filter(None, [traffic.line(settings, *sizes(plan)), bus])
    free = memory_fit.free(settings, plan.machine)
    out.append(f"memory: about {memory.words(plan.memory)}; {gigabytes(free)} free")
    out.append(f"disk: {gigabytes(sum(plan.disk.values()))} ({disk_space.words(plan.disk)})")
    return out


def sizes(plan: Plan) -> tuple[int, int]:
    """Parameters of the adapter, and bytes of the frozen model: what goes between the processes follows from them."""
    model = memory.shape(plan.base.config, plan.base.parameters)
    return disk_space.adapter_parameters(plan.settings, plan.base), memory.cut_weights(plan.settings, model)


def _automatic(settings: Settings, name: str) -> bool:
    return any(name == key for key, _, _ in settings.choices)


class _Sequences(NamedTuple):
    """What the trainer gets of each part of the data, and all rows that were left out."""

    train: datasets.Dataset
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    replay: datasets.Dataset | None
    rejected: list[BadRow]


def _tokenise(data: Data, template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, settings: Settings) -> _Sequences:
    """Sequences of the training, validation and test rows, and all rows left out. UserError at bad rows, or none left."""
    longest, rules = settings.model.max_seq_length, settings.dataset
    options = template, tokenizer, longest, rules.train_turns, rules.train_on, CACHE
    bad: list[BadRow] = []

    def sequences(part: datasets.Dataset | None) -> datasets.Dataset | None:
        if part is None:
            return None
        rows, unusable = tokenising.tokenise(part, *options, say=logger.info)
        for warning in tokenising.warnings(rows, longest) if rows is not None else ():
            logger.warning(warning)
        bad.extend(unusable)
        return rows

    train, validation, test, replay = map(sequences, (data.train, data.validation, data.test, data.replay))
    if train is None or (bad and rules.on_bad_row != "skip"):
        raise dataset.bad_rows_error(bad)
    rejected = [*data.rejected, *bad]
    for row in rejected[:NAMED]:
        logger.warning("left out: {}", row)
    if len(rejected) > NAMED:
        logger.warning(
            "{:,} rows more are left out; the run's {} has them all", len(rejected) - NAMED, "rejected.jsonl"
        )
    return _Sequences(train, validation, test, replay, rejected)


def _as_served(template: ChatTemplate, tokenizer: PreTrainedTokenizerBase, rows: datasets.Dataset) -> ChatTemplate:
    """The template with what servers need, so that they write the prompts that were trained; says what is not so."""
    import numpy as np

    thoughts = bool(np.asarray(rows.with_format("numpy")["thought"][:]).any())
    template, notes, warnings = serving.close(template, tokenizer, thoughts)
    for line in notes:
        logger.info(line)
    for line in warnings:
        logger.warning(line)
    return template


def _try_modelfile(settings: Settings, template: ChatTemplate, plain: bool) -> None:
    """Compose the Modelfile now: a system text or a name that it cannot hold must not be found out after the training."""
    text = ollama.compose(
        f"{settings.name}.Q4_K_M.gguf",
        None if plain else chat_of(template, adds_bos=False),
        stops=template.end_tokens or (template.eos,),
        num_ctx=settings.model.max_seq_length,
    )
    choices.look_at_ollama(text)


CHARACTERS = 1 << 20  # of rows that are read before the training
KEPT_CHARACTERS = 1 << 17  # and of those that the export reads again, from the finished file


def of_plan(plan: Plan, most: int) -> RowTexts:
    """`row_texts` of the run that a plan leads to."""
    options = plan.settings.dataset.train_turns, plan.settings.dataset.train_on
    return row_texts(plan.data.train, plan.train, plan.template, options, plan.settings.training.seed, most)


def hold(vocabulary: Path | None, plan: Plan) -> None:
    """Read texts of ours and the run's own rows with llama.cpp, by the model's vocabulary as a GGUF file.

    UserError naming the rows that would be read as other tokens than are trained.
    """
    if vocabulary is None:
        logger.warning("how llama.cpp reads the rows could not be tried before the training; the export checks it")
        return
    chats = () if plan.data.plain else chat_template.samples(plan.template)
    with llama.opened(vocabulary, vocab_only=True) as reader:
        check = gguf_files.gguf_tokenizer(reader, plan.base.path, chats, plan.tokenizer)
        if not check.passed:
            raise UserError(f"{plan.base.name} cannot be served as it is trained: {check.failure}")
        texts = of_plan(plan, CHARACTERS)
        different = list(differences(reader, plan.tokenizer, texts.texts))
        composed = read_when_composed(reader, plan.tokenizer, different)
    if other := [one for one in different if one.row not in composed]:
        raise UserError(_refused(other, plan.tokenizer), _title(other, texts))
    if composed:
        named = ", ".join(dict.fromkeys(place(row.file, row.line) for row in composed[:SHOWN]))
        logger.warning(
            "{}{}: text outside Unicode NFC is trained as its NFC form; Ollama reads the NFC form as the same tokens, and "
            "other forms as others",
            named,
            f" and {len(composed) - SHOWN:,} more" if len(composed) > SHOWN else "",
        )
    logger.info("llama.cpp reads {:,} of {:,} rows as they are trained", texts.rows, texts.total)


def _title(different: Sequence[Difference], texts: RowTexts) -> str:
    count = len({(one.row.file, one.row.line) for one in different})
    rows = f"{count:,} of {texts.rows:,} rows" + (f" (of {texts.total:,})" if texts.rows < texts.total else "")
    return f"{rows} would be read in Ollama as other tokens than are trained:"


def _refused(different: Sequence[Difference], tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The first rows, each with the place and what would do, and the count of the rest."""
    first: dict[tuple[str, int], Difference] = {}
    for one in different:
        first.setdefault((one.row.file, one.row.line), one)
    named = [
        f"{place(one.row.file, one.row.line)}: {why_different(one, tokenizer)}" for one in list(first.values())[:SHOWN]
    ]
    return named + ([f"and {len(first) - SHOWN:,} more"] if len(first) > SHOWN else [])
