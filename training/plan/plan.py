"""Everything short of training: look at the machine, the model and every row, and say what will happen.

A run starts only when all of it went well; `./run.sh --check` ends here. Nothing is written under OUTPUT_DIR.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from loguru import logger

from training import base_model, ollama, settings
from training.base_model import leftovers, sources, weights_fit
from training.checks import gguf_files
from training.checks.as_read import Difference, differences, read_when_composed, why_different
from training.data import chat_template, dataset, serving, tokenising
from training.data.oddities import SHOWN
from training.data.row_texts import RowTexts, row_texts
from training.errors import MachineError, UserError
from training.ollama import Chat, modelfile
from training.plan import choices, disk_space, memory, memory_fit
from training.plan.choices import choose_for_rows, fit_to_model
from training.settings import contradictions
from training.system import foreign_code, paths, privacy, this_machine
from training.system.this_machine import Machine
from training.system.wording import gigabytes
from training.to_gguf import trial
from training.train import engine

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


CACHE = paths.CACHE / "rows"
NAMED = 5  # rows left out that the log names
SECRET_SHIPPED = (
    "{} holds what looks like a password or a key: it is hidden in logs and reports only. The model is trained with it, and "
    "the Modelfile gives it to everybody who runs the model; take it out of the text if that is not meant"
)


@dataclass(frozen=True)
class Plan:
    """A run that can start: all choices made, all rows read and tokenised."""

    settings: Any
    machine: Machine
    base: Any  # base_model.BaseModel
    tokenizer: Any
    template: Any  # chat.ChatTemplate
    data: Any  # dataset.Data
    train: Any  # datasets.Dataset with input_ids and labels
    validation: Any  # the same, or None
    test: Any  # the same, or None: rows kept for a last test (TEST_SPLIT)
    summary: Any  # tokens.Summary of the training rows
    rejected: list[Any]
    steps: int
    disk: dict[str, int]  # bytes on the way and at the end, by what takes them
    memory: dict[str, int]  # bytes while it trains, by what takes them

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of one pass over the training rows."""
        return self.settings.steps_per_epoch(len(self.train))


def prepare(given: Any, today: date | None = None, there: int = 0, weights: bool = True) -> Plan:
    """Check and choose everything, in the order of the run. Raises UserError or MachineError; logs what it finds.

    Of a run that is resumed, `today`: the date on which it began, for the templates that write one into the prompt;
    `there`: the bytes that it has on the disk already. Without `weights` a model on the Hub is not downloaded for it.
    """
    foreign_code.trust(given.model.trust_remote_code)
    this_machine.show_one_card(given.hardware.device)
    machine = this_machine.inspect()
    for line in machine.lines():
        logger.info(line)
    _not_built(given)
    given = choices.decide(given, machine)
    if problems := [message for _, message in contradictions.find(given)]:
        raise UserError(problems)
    choices.check_cards(given)
    choices.check_writable(given.training.output_dir)
    _look_before_download(given, machine)
    if given.model.system_prompt and privacy.redact(given.model.system_prompt) != given.model.system_prompt:
        logger.warning(SECRET_SHIPPED, given.place("Model.SYSTEM_PROMPT"))
    base = base_model.locate(given.model, say=logger.info, weights=weights)
    for line in leftovers.words(base.path):
        logger.warning(line)
    given = fit_to_model(given, base)
    methods = given.quantization.quantization_method
    with trial.trial(base.config, base.path, methods) as tried:  # beside this process, while the rows are read
        engine.start(given)
        weights_fit.check(base.path, base.config, given.model.trust_remote_code)
        if given.lora.use_dora:
            weights_fit.check_dora(base.path, given.lora.target_modules)
        plan = _read_rows(given, machine, base, today, there)
        figures = tried()
        hold(figures["vocabulary"], plan)
    if "note" in figures:
        logger.warning("no small {} could be tried in llama.cpp: {}", base.config.get("model_type"), figures["note"])
    logger.info(
        "converter and quantiser tried on a small {architecture}: {convert_seconds} s and {quantise_seconds} s",
        **figures,
    )
    return plan


def _read_rows(given: Any, machine: Machine, base: Any, today: date | None, there: int) -> Plan:
    """The part of the plan that follows from the rows."""
    tokenizer = engine.tokenizer(base, given)
    template = chat_template.choose(base, given, tokenizer, today)
    logger.info("chat template: {}", template.source)
    data = dataset.load(given, CACHE, say=logger.info)
    for warning in data.warnings:
        logger.warning(warning)
    for note in (*data.notes, *contradictions.unused(given)):
        logger.info(note)
    rows, validation, test, rejected = _tokenise(data, template, tokenizer, given)
    _enough_for_all(len(rows), given)
    if not data.plain:
        template = _as_served(template, tokenizer, rows)
    summary = tokenising.summary(rows, tokenizer)
    given = choose_for_rows(given, base, summary, machine)
    steps = given.total_steps(len(rows))
    given = settings.clamp(given, steps)
    _try_modelfile(given, base, template, tokenizer, data.plain)
    disk = disk_space.disk_needed(given, base, steps)
    choices.check_disk(
        given.training.output_dir, max(disk_space.MARGIN, sum(disk.values()) - there), disk_space.words(disk)
    )
    disk_space.check_importance(given, base, machine)
    model, adapter = memory.shape(base.config, base.parameters), disk_space.adapter_parameters(given, base)
    if warning := memory_fit.check(given, model, summary.total[3], machine, adapter):
        logger.warning(warning)
    needed = memory.estimate(given, model, summary.total[3], adapter)
    return Plan(
        given, machine, base, tokenizer, template, data, rows, validation, test, summary, rejected, steps, disk, needed
    )


def _look_before_download(given: Any, machine: Machine) -> None:
    """A model on the Hub that cannot fit, however short the rows: MachineError before it is downloaded.

    Where the Hub does not answer nothing is known yet; `locate` then says so, or takes the copy downloaded before.
    """
    if base_model.door(given.model.base_model_name) != "hub":
        return
    from huggingface_hub import constants

    if constants.is_offline_mode():
        return
    try:
        seen = sources.peek(given.model)
    except MachineError:
        return
    if not seen.config or not seen.parameters:
        return
    model = memory.shape(seen.config, seen.parameters)
    memory_fit.check(given, model, memory_fit.SHORT, machine)
    longest = min(given.model.max_seq_length, seen.max_length or given.model.max_seq_length)
    short, long = (sum(memory.estimate(given, model, length).values()) for length in (memory_fit.SHORT, longest))
    logger.info(
        "{}: about {} of memory with rows of {} tokens, {} with {:,} (MAX_SEQ_LENGTH); {} free",
        *(
            seen.name,
            gigabytes(short),
            memory_fit.SHORT,
            gigabytes(long),
            longest,
            gigabytes(memory_fit.free(given, machine)),
        ),
    )


def lines(plan: Plan) -> list[str]:
    """The plan, for the log and for --check."""
    given, counts = plan.settings, plan.data.counts
    training = given.training
    out = [
        f"{name} = {value} ({origin})" for name, value, _, origin in given.differences() if not _automatic(given, name)
    ]
    out += [f"{name} = {value}: {reason}" for name, value, reason in given.choices]
    held_out = f", {counts.validation:,} to validate" if plan.validation is not None else ", no validation"
    out.append(f"rows: {counts.train:,} to train{held_out}" + (f", {counts.test:,} to test" if counts.test else ""))
    out += plan.summary.lines()
    epochs = plan.steps / plan.steps_per_epoch
    why = "MAX_STEPS" if training.max_steps > 0 else f"NUM_TRAIN_EPOCHS = {training.num_train_epochs:g}"
    shared = f" in {given.processes} processes" if given.processes > 1 else ""
    out.append(f"{plan.steps:,} steps of {given.rows_a_step} rows{shared} ({why}), {epochs:.2g} epochs")
    free = memory_fit.free(given, plan.machine)
    out.append(f"memory: about {memory.words(plan.memory)}; {gigabytes(free)} free")
    out.append(f"disk: {gigabytes(sum(plan.disk.values()))} ({disk_space.words(plan.disk)})")
    return out


def _automatic(given: Any, name: str) -> bool:
    return any(name == key for key, _, _ in given.choices)


def _not_built(given: Any) -> None:
    """A setting that this version cannot honour is refused, never silently ignored."""
    if given.hardware.sharding != "none":
        raise UserError(f"{given.place('Hardware.SHARDING')}: sharding is not built yet; set it to none")


def _enough_for_all(rows: int, given: Any) -> None:
    """Refuse more processes than there are rows to train on; say where they will have little to do."""
    processes = given.hardware.num_processes
    if rows < given.processes:
        place = given.place("Hardware.NUM_PROCESSES")
        only = f"there are {rows} training row{'s' * (rows != 1)} only, for {given.processes} processes"
        raise UserError(f"{place}: {only}; set it to {max(1, rows // given.hardware.num_machines)} at most")
    if processes > 1 and given.hardware.device == "cpu":
        logger.info("NUM_PROCESSES = {}: on the CPU of one machine one process is usually as fast", processes)


def _tokenise(data: Any, template: Any, tokenizer: Any, given: Any) -> tuple[Any, Any, Any, list[Any]]:
    """Sequences of the training, validation and test rows, and all rows left out. UserError at bad rows, or none left."""
    options = (
        template,
        tokenizer,
        given.model.max_seq_length,
        given.dataset.train_turns,
        given.dataset.train_on,
        CACHE,
    )
    parts, bad = [], []
    for part in (data.train, data.validation, data.test):
        rows, unusable = tokenising.tokenise(part, *options, say=logger.info) if part is not None else (None, [])
        for told in tokenising.warnings(rows, given.model.max_seq_length) if rows is not None else ():
            logger.warning(told)
        parts.append(rows)
        bad += unusable
    if bad and (given.dataset.on_bad_row != "skip" or parts[0] is None):
        raise dataset.bad_rows_error(bad)
    rejected = [*data.rejected, *bad]
    for one in rejected[:NAMED]:
        logger.warning("left out: {}", one)
    if len(rejected) > NAMED:
        logger.warning(
            "{:,} rows more are left out; the run's {} has them all", len(rejected) - NAMED, "rejected.jsonl"
        )
    return *parts, rejected


def _as_served(template: Any, tokenizer: Any, rows: Any) -> Any:
    """The template with what servers need, so that they write the prompts that were trained; says what is not so."""
    import numpy as np

    thoughts = bool(np.asarray(rows.with_format("numpy")["thought"][:]).any())
    template, said, left = serving.close(template, tokenizer, thoughts)
    for line in said:
        logger.info(line)
    for line in left:
        logger.warning(line)
    return template


def _try_modelfile(given: Any, base: Any, template: Any, tokenizer: Any, plain: bool) -> None:
    """Compose the Modelfile now: a system text or a name that it cannot hold must not be found out after the training."""
    chatting = None if plain else Chat(
        lambda messages, add_generation_prompt: chat_template.prompt_served(template, messages, add_generation_prompt),
        jinja=template.exported, bos=template.bos, eos=template.eos, adds_bos=False, system=template.system,
    )  # fmt: skip
    text = ollama.compose(
        f"{given.name}.Q4_K_M.gguf",
        chatting,
        stops=template.end_tokens or (template.eos,),
        num_ctx=given.model.max_seq_length,
    )
    _look_at_ollama(text)


def _look_at_ollama(text: str) -> None:
    """Say which Ollama is here, and warn when it is too old for the Modelfile `text`."""
    version = choices.ollama()
    if version is None:
        logger.info("Ollama: not here; the Modelfile is written all the same")
        return
    shown = ".".join(map(str, version))
    least = tuple(map(int, modelfile.NATIVE.split(".")))
    if f"REQUIRES {modelfile.NATIVE}" in text.splitlines() and version < least:
        logger.warning(
            "Ollama {} is here, and this model will need {} or later: its chat template has no form as a TEMPLATE; "
            "update Ollama meanwhile",
            shown,
            modelfile.NATIVE,
        )
    else:
        logger.info("Ollama {}", shown)


CHARACTERS = 1 << 20  # of rows that are read before the training
KEPT_CHARACTERS = 1 << 17  # and of those that the export reads again, from the finished file


def of_plan(plan: Plan, most: int) -> RowTexts:
    """`row_texts` of the run that a plan leads to."""
    chosen = plan.settings.dataset
    options = chosen.train_turns, chosen.train_on
    return row_texts(plan.data.train, plan.train, plan.template, options, plan.settings.training.seed, most)


def hold(vocabulary: Path | None, plan: Plan) -> None:
    """Read texts of ours and the run's own rows with llama.cpp, by the model's vocabulary as a GGUF file.

    UserError naming the rows that would be read as other tokens than are trained.
    """
    if vocabulary is None:
        logger.warning("how llama.cpp reads the rows could not be tried before the training; the export checks it")
        return
    chats = () if plan.data.plain else chat_template.samples(plan.template)
    found = gguf_files.gguf_tokenizer(vocabulary, plan.base.path, chats, plan.tokenizer)
    if not found.passed:
        raise UserError(f"{plan.base.name} cannot be served as it is trained: {found.failure}")
    texts = of_plan(plan, CHARACTERS)
    different = list(differences(vocabulary, plan.tokenizer, texts.texts))
    composed = read_when_composed(vocabulary, plan.tokenizer, different)
    if other := [one for one in different if one.row not in composed]:
        raise UserError(_refused(other, plan.tokenizer), _title(other, texts))
    if composed:
        named = ", ".join(dict.fromkeys(f"{row.file}:{row.line}" for row in composed[:SHOWN]))
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
    told = [f"{one.row.file}:{one.row.line}: {why_different(one, tokenizer)}" for one in list(first.values())[:SHOWN]]
    return told + ([f"and {len(first) - SHOWN:,} more"] if len(first) > SHOWN else [])
