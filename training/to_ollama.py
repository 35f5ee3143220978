"""A run's model goes into a live Ollama, and is proved there:  export_ollama.sh starts this where the packages are.

python training/to_ollama.py RUN --modelfile FILE --name NAME, with --ping: is there a server at OLLAMA_HOST? Prints the
model's name on stdout; the Modelfile's where this Ollama cannot run the model.
"""

from __future__ import annotations

import os
import re
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from training.system import own_python

    own_python.use()

from loguru import logger

from training import ollama
from training.checks.served_facts import Served
from training.errors import FinetuneError, Interrupted, MachineError, NotSwitched, RunError, UserError
from training.ollama import CreateRequest, Server, address, asking, delivery, modelfile
from training.ollama.go_template import PLAIN
from training.ollama.server import NoServer, beside, full_name
from training.runs import Run
from training.system import last_net, log, privacy, shell
from training.system.plain_parser import Parser
from training.system.signals import Signals
from training.system.wording import shorten

if TYPE_CHECKING:
    from training.to_gguf.job import Job

QUESTION = "Who are you?"
BEGINNING = 600  # characters of an answer without end that are shown
NO_SERVER = 69  # exit code of --ping, for the script


def main(argv: Sequence[str]) -> int:
    """The command line; errors go to the log, the name to stdout."""
    stdout = log.claim_stdout()
    asked = _parser().parse_args(argv)
    if asked.ping:
        return _ping()
    if asked.rollback:
        return _told(lambda: _roll_back(asked.rollback, stdout))
    if asked.run is None or asked.modelfile is None or asked.name is None:
        _parser().error("RUN, --modelfile and --name are needed")
    return _told(lambda: _export(asked, stdout))


def _told(work: Callable[[], None]) -> int:
    """Do it; how it ends is told. The exit code."""
    signals = Signals()
    signals.install()
    log.start()
    told: FinetuneError | Interrupted
    try:
        work()
        return 0
    except Exception as error:
        told = error if isinstance(error, FinetuneError) else last_net.caught(error)
    except Interrupted as error:
        told = error
    signals.delivered()
    logger.error("{}", told)
    return told.exit_code


def _parser() -> Parser:
    parser = Parser(prog="to_ollama.py", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--modelfile", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--switch", action="store_true", help="only where it is not worse than what NAME stands for")
    parser.add_argument("--rollback", metavar="NAME", help="what NAME stood for before the last switch")
    parser.add_argument("--ping", action="store_true", help="exit 0 where an Ollama answers, else 69")
    return parser


def _ping() -> int:
    try:
        Server().version()
    except FinetuneError as error:
        if os.environ.get(address.VARIABLE):
            privacy.tell(error)
        return NO_SERVER
    return 0


def _export(asked: Namespace, stdout: IO[str]) -> None:
    """Send, create beside, prove, ask, and put in place; what is found is written into the run's report."""
    from training.checks import served
    from training.to_gguf.job import Job

    server = Server(patience=_limit("OLLAMA_ANSWER_SECONDS", 300))
    request = ollama.of_modelfile(asked.modelfile)
    job = Job.of_run(asked.run)
    _able(server, request, asked, stdout)
    before = server.digest(asked.name)
    placing = False
    try:
        with delivery.made(server, request, asked.name, logger.info) as model:
            subject = served.of_job(server, job, request)
            if request.adapter and subject.gguf:
                _on_blob(job, subject.gguf, request)
            proof = served.prove(server, model.name, subject)
            for note in proof.notes:
                logger.info("{}", note)
            proof.require("")
            logger.info("{}", proof.line)
            ask(server, model.name, request)
            switched = asked.switch and before is not None
            if switched:
                _judge(server, job, request, asked.name, model.name)
            placing = True
            delivery.put_in_place(server, model, keep=switched)
    except (RunError, NoServer) as error:
        raise _failed(error, f"{_stands(server, asked.name, before, placing)}; {asked.modelfile} is there") from error
    _keep(job.run, proof.served, asked.name)
    logger.info("done:  ollama run {}", asked.name)
    log.say(stdout, asked.name)


def _failed(error: RunError | NoServer, safe: str) -> RunError:
    """A server that is gone amid the work is a failure of the work: what is safe is told then, too."""
    stage, message = (error.stage, error.message) if isinstance(error, RunError) else ("ollama", str(error))
    return RunError(stage, message, safe)


def _stands(server: Server, name: str, before: str | None, placing: bool) -> str:
    """What the name stands for after a failure: as before, unless it was to be put in place just then."""
    now = before
    if placing:
        try:
            now = Server(server.at, min(server.patience, delivery.LAST)).digest(name)
        except FinetuneError:
            return f"whether {name} stands for the new model by now is not known, for the server does not tell"
    if now == before:
        return f"{name} is not in Ollama" if now is None else f"{name} answers in Ollama as before"
    return f"{name} is not in Ollama any more" if now is None else f"{name} stands for another model than before"


def _on_blob(job: Job, blob: Path, request: CreateRequest) -> None:
    """Say what the base's own quantisation costs; RunError where that is another model."""
    from training.checks import on_blob, require

    assert request.adapter is not None
    made = on_blob.checks(job, blob, request.adapter)
    require(made)
    check = made[-1]
    if check.skipped:
        logger.info("{} with the adapter was not held against what was trained: {}", request.base, check.skipped)
        return
    own = on_blob.is_own(job, blob)
    logger.info(
        "{} with the adapter against base and adapter as trained: mean KL {:.4f}, first choices equal {:.1%}, perplexity "
        "times {:.3f}; {}",
        request.base, check.figures["mean_kl"], check.figures["top1"], check.figures["perplexity_ratio"],
        "it is the file that was trained on" if own else "that is what its quantisation costs",
    )  # fmt: skip


def _judge(server: Server, job: Job, request: CreateRequest, old: str, new: str) -> None:
    """NotSwitched unless the new model is shown to be no worse than the old one."""
    from training.checks import served_answers
    from training.evaluation import rivals
    from training.to_gguf import reader_metadata

    words = reader_metadata.tokenizer(job.merged if job.merged.is_dir() else job.base)
    chats = served_answers.plain_chats(job.template, words, job.facts.asked, job.facts.num_ctx) if job.template else []
    judged = rivals.judge(server, old, new, chats, logger.info)
    if judged.verdict == rivals.NOT_WORSE:
        logger.info("{} is not worse than {}: {}", new, old, judged.words)
        return
    why = "is worse" if judged.verdict == rivals.WORSE else "is not shown to be as good"
    kept = shell.words("ollama", "cp", old, beside(old, delivery.PREVIOUS))
    raise NotSwitched(
        f"{old} answers as before, for the new model {why}: {judged.words}.\n"
        f"All the same, and the old model is deleted:  {_without_switch(job.run.path, request, old)}\n"
        f"To keep it for --rollback, first:  {kept}"
    )


def _without_switch(run: Path, request: CreateRequest, name: str) -> str:
    """The command that was typed, without --switch: the run, or the one of its files that was chosen."""
    if request.adapter is not None:
        return shell.command("export_ollama.sh", "--adapter", request.base, run, name)
    chosen = request.gguf is not None and not _is_own(run, request.gguf)
    return shell.command("export_ollama.sh", request.gguf if chosen else run, name)


def _is_own(run: Path, gguf: Path) -> bool:
    """Whether the run's Modelfile names this file, so that the run's folder stands for it."""
    try:
        own = ollama.of_modelfile(run / "Modelfile").gguf
    except (OSError, UserError):
        return False
    return own is not None and own.resolve() == gguf.resolve()


def _roll_back(name: str, stdout: IO[str]) -> None:
    delivery.roll_back(Server(), name)
    logger.info("{} stands again for what it was before; the same command goes forward", name)
    log.say(stdout, name)


def _able(server: Server, request: CreateRequest, asked: Namespace, stdout: IO[str]) -> None:
    """MachineError where this server cannot run the model; the Modelfile is then the result. UserError where the base
    of an adapter has the name of what is kept."""
    if asked.switch and request.base and full_name(request.base) == full_name(beside(asked.name, delivery.PREVIOUS)):
        raise UserError(f"--switch keeps the old {asked.name} as {request.base}, which is the base: give another NAME")
    command = shell.words("ollama", "create", asked.name, "-f", asked.modelfile)
    if request.base and server.show(request.base) is None:
        raise MachineError(f"Ollama has no model {request.base}: ollama pull {request.base}, then:  {command}")
    version = server.version()
    if request.template is not None or request.base or not modelfile.is_before_native(version):
        return
    log.say_path(stdout, asked.modelfile)
    raise MachineError(
        f"this model's chat template has no form as a TEMPLATE, so it needs Ollama {modelfile.NATIVE} or later; this is "
        f"{version}. After an update:  {command}"
    )


def ask(server: Server, name: str, request: CreateRequest) -> None:
    """One question as people ask it, with the model's own sampling. RunError where the answer is none."""
    seconds, tokens = _limit("OLLAMA_ANSWER_SECONDS", 300), _limit("OLLAMA_ANSWER_TOKENS", 1000)
    logger.info("> {}", QUESTION)
    plain = request.template == PLAIN
    prompt: asking.Prompt = QUESTION if plain else [{"role": "user", "content": QUESTION}]
    answer = asking.answer(server, name, prompt, tokens, options={}, seconds=seconds)
    said = answer.text.strip()
    if answer.late:
        raise RunError("ollama", f"the model did not finish its answer within {seconds} s:\n{shorten(said, BEGINNING)}")
    if not answer.stopped:
        how = "only repeats itself" if answer.looped else f"did not stop by itself within {tokens} tokens"
        raise RunError(
            "ollama",
            f"the answer {how}: {shorten(said or answer.thoughts.strip(), BEGINNING)}\n"
            "It has not learned where an answer ends (does the report say that it stops? If not: more steps or rows). "
            f"If answers are meant to be long: OLLAMA_ANSWER_TOKENS={5 * tokens}",
        )
    if not said:
        thought = ", all of it is shown as thoughts" if answer.thoughts.strip() else ""
        raise RunError("ollama", f"the answer is empty{thought}")
    logger.info("{}", said)
    for stop in request.stops:
        if stop in said:
            logger.warning("the answer holds {}, where it should have ended", stop)


def _keep(run: Run, served: Served, name: str) -> None:
    """Write what was found into the run's report. The model is served: a disk that does not take it changes nothing."""
    from training.report import gathering

    gathering.keep_served(run, replace(served, name=name))


def _limit(variable: str, usual: int) -> int:
    written = os.environ.get(variable, "") or str(usual)
    if not re.fullmatch("0*[1-9][0-9]{0,5}", written):
        raise UserError("OLLAMA_ANSWER_SECONDS and OLLAMA_ANSWER_TOKENS are whole numbers from 1 to 999999")
    return int(written)


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
