"""The base model answers the shipped questions, before anything is trained: once for a run, whose directory keeps them."""

from __future__ import annotations

import contextlib
from dataclasses import replace

from loguru import logger

from training.data import ChatTemplate, chat_template, replay
from training.data.encoding import end_ids
from training.errors import RunError, UserError
from training.evaluation import base_answers
from training.evaluation.base_answers import Answered, Asking
from training.plan import Plan, replayed
from training.plan.plan import with_answers
from training.report import gathering
from training.runs import Run
from training.system import wording
from training.system.events import Events
from training.system.progress_bar import gauge
from training.train import Loaded, engine, random_state

STAGE = "replay"


def base_model_answers(plan: Plan, run: Run, events: Events) -> tuple[Plan, Loaded | None]:
    """The plan with its replay rows, and the model where it had to be loaded for them: as it was just after loading.

    An interruption loses the answers so far; with a whole file of them the run goes on, also where today's libraries or
    another machine would answer otherwise. RunError where no answer came to an end.
    """
    if not replayed.awaited(plan.replay) or run.stage("train") is not None:
        return plan, None
    loaded = engine.load(plan.base, plan.settings, plan.longest, plan.tokenizer)
    # As in a run that is resumed, whose model has not answered.
    state, training = random_state.take(), loaded.model.training
    found = asked(loaded, plan)
    random_state.put_back(state)
    loaded.model.train(training)
    if not found.exchanges:
        raise RunError(
            STAGE,
            f"of {found.asked} questions the base model has ended no answer within {base_answers.LONGEST_ANSWER} tokens: is it "
            "one that answers in chats?",
            "nothing was trained; REPLAY_SHARE = 0, or a REPLAY_FILE of your own, goes without its answers",
        )
    replay.write(run.path / replay.FILE, found.exchanges)
    plan = with_answers(plan, run.path)
    _tell(plan, found, run, events)
    gathering.keep(plan, run)
    return plan, loaded


def asked(loaded: Loaded, plan: Plan) -> Answered:
    """Ask the base model as many questions as there are rows wanted, or all."""
    from transformers import set_seed

    assert plan.replay
    seed = plan.settings.training.seed
    questions = replay.prompts(seed)
    wanted = min(len(questions), plan.replay.count)
    own = _own_template(plan)
    ends = end_ids(own, plan.tokenizer, plan.base)
    asking = Asking(
        own=own, end_ids=ends, options=base_answers.options(plan.base), rows=plan.template, longest=plan.replay.longest
    )
    logger.info("asking the base model for {}", wording.counted(wanted, "answer"))
    set_seed(seed)
    # A new adapter changes nothing; biases that are to be trained are still those of the base model.
    switched = plan.settings.lora.bias == "none"
    with (
        loaded.model.disable_adapter() if switched else contextlib.nullcontext(),
        gauge("the base model answers", wanted, logger.info, "questions") as advance,
    ):
        return base_answers.ask(
            loaded.model, plan.tokenizer, asking, questions, wanted, lambda asked, ended: advance(ended, asked)
        )


def _own_template(plan: Plan) -> ChatTemplate:
    """The base model's own chat template, where the rows are trained in another and it has one."""
    settings = plan.settings
    if settings.model.chat_template == "auto" and not settings.dataset.prompt_template:
        return plan.template
    own = replace(
        settings,
        model=replace(settings.model, chat_template="auto"),
        dataset=replace(settings.dataset, prompt_template=None),
    )
    try:
        return chat_template.choose(plan.base, own, plan.tokenizer, plan.template.today)
    except UserError as error:
        logger.info("the base model is asked in the template of the rows: {}", error)
        return plan.template


def _tell(plan: Plan, found: Answered, run: Run, events: Events) -> None:
    """What was asked and answered; as a warning what makes the rows another mixture than was asked for."""
    assert plan.replay
    answers, rows = len(found.exchanges), plan.replay.count
    logger.info(
        "{:,} of {:,} answers of the base model came to an end, in {}; they are in {}",
        *(answers, found.asked, wording.duration(found.seconds), run.path / replay.FILE),
    )
    if answers >= rows:
        return
    why = (
        f"within {wording.duration(base_answers.MOST_SECONDS)} it gave {answers:,}"
        if not found.in_time
        else f"of the {found.asked:,} questions that there are {answers:,} have an answer that ended"
    )
    words = (
        f"REPLAY_SHARE = {plan.replay.share:g} asks for {rows:,} rows of the base model's answers, and {why}: each is taken "
        f"{-(-rows // answers):,} times at most in an epoch; a REPLAY_FILE of your own may hold more"
    )
    logger.warning(words)
    run.update(warnings=[*run.status.get("warnings", []), words])
    events.emit("warning", message=words)
