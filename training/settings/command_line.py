"""The command line: what ./run.sh is told, taken apart. Run as a script, it checks the settings and nothing else:
python3 training/settings/command_line.py ARGUMENTS  (any Python from 3.10 on, nothing installed; exit 0, or 2 with all problems)
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

if __name__ == "__main__":  # as a script, this folder stands first on the path and would shadow installed packages
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from training.errors import FinetuneError, UserError
from training.settings import ini_file, loading, other_names, usage
from training.settings.settings import Override, Settings
from training.settings.table import EVERY, TABLE
from training.settings.usage import (
    COMMANDS,
    NOT_GIVEN,
    POSITIONS,
    SERVICE_FLAGS,
    SETTING_FLAGS,
    SWITCH_NEEDS,
    SWITCHES,
    TRAINS,
)
from training.system import events, listeners, paths, privacy, shell


@dataclass(frozen=True)
class Arguments:
    """What the command line asks for."""

    command: str = "run"  # or a key of COMMANDS without its dashes
    config: Path = paths.ROOT / "config.ini"
    overrides: tuple[Override, ...] = ()  # in order: of two for one setting the last one holds
    typed: tuple[str, ...] = ()  # the words that set something, as they can be typed again
    runs: tuple[Path, ...] = ()  # absolute paths, or bare names to be looked up in OUTPUT_DIR
    words: tuple[str, ...] = ()  # the same as they were written
    fresh: bool = False
    detach: bool = False
    events: bool = False
    json: bool = False

    @property
    def run(self) -> Path | None:
        """The RUN of --resume, --status, --follow and --stop; None means the latest one."""
        return self.runs[0] if self.runs else None


@dataclass
class _Parser:
    """The state of one pass over the arguments."""

    left: list[str]
    config: str | None = None
    commands: list[str] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    switches: set[str] = field(default_factory=set)
    flags: list[Override] = field(default_factory=list)
    typed: list[str] = field(default_factory=list)
    positions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    form: str = ""  # of --dataset-format


def parse(argv: Sequence[str]) -> Arguments:
    """The arguments, without the program's name. `--help` prints the help and raises SystemExit(0).

    Flags beat positions, and of two flags the last one wins. Raises UserError with all that is wrong with them;
    the values are checked by settings.load.
    """
    parser = _Parser(list(argv))
    while parser.left:
        word = parser.left.pop(0)
        if word == "--":
            parser.positions += parser.left
            parser.left = []
        elif word.startswith("-") and word != "-":
            _flag(parser, word)
        else:
            parser.positions.append(word)
    positions = list(_positions(parser))
    _check_together(parser)
    if parser.problems:
        raise UserError(
            [*parser.problems, f"{shell.command('run.sh', '--help')} lists all arguments"], title="wrong arguments"
        )
    command = parser.commands[0].removeprefix("--") if parser.commands else "run"
    return Arguments(
        command=command,
        config=_from_here(parser.config) if parser.config else paths.ROOT / "config.ini",
        overrides=(*positions, *parser.flags),
        typed=(*_typed_positions(parser.positions), *parser.typed),
        runs=tuple(_run(text) for text in parser.runs),
        words=tuple(parser.runs),
        **{switch.removeprefix("--"): True for switch in parser.switches},
    )


def _flag(parser: _Parser, word: str) -> None:
    """Take in one flag, with its value from after `=` or from the next argument."""
    name, equals, value = word.partition("=")
    name = name.replace("_", "-")
    if name in ("--help", "-h"):
        listeners.tell(sys.stdout, usage.help_text())
        raise SystemExit(0)
    if name in SWITCHES or name in COMMANDS:
        _command_or_switch(parser, name, value if equals else None)
    elif name in ("--config", "--set"):
        if not equals:
            value = _next(parser)
        parser.typed += [f"{name}={value}"] if value.startswith("--") else [name, value]
        if not value:
            parser.problems.append(f"{name} needs a value" + (": Section.KEY=VALUE" if name == "--set" else ""))
        elif name == "--config":
            parser.config = value
        else:
            _set(parser, value)
    elif name in SERVICE_FLAGS or (name.startswith("--") and other_names.is_taken(name)):
        _setting(parser, name, value if equals else None)
    else:
        parser.problems.append(f"{ini_file.show(name)} is not a flag{other_names.hint(name, 'flag')}")
        if parser.left and not parser.left[0].startswith("-"):
            parser.left.pop(0)  # its value, most likely: not one more position


def _setting(parser: _Parser, name: str, value: str | None) -> None:
    """A flag that gives a setting its value. One that is true or false may stand alone for true."""
    if value is None and name not in SERVICE_FLAGS and other_names.is_switch(name):
        value = parser.left.pop(0) if parser.left and parser.left[0].lower() in ("true", "false", "auto") else "true"
    if value is None:
        value = _next(parser)
    if name not in SERVICE_FLAGS:
        parser.typed += [f"{name}={value}"] if value.startswith("-") else [name, value]
    if not value:
        parser.problems.append(f"{name} needs a value")
    elif value in NOT_GIVEN:
        parser.problems.append(f"{name} {value}: is no value; leave the flag out to take the one in the settings file")
    else:
        try:
            parser.flags += _overrides(name, value)
        except ValueError as error:
            parser.problems.append(f"{name} {ini_file.show(value)}: {error}")
        if name == "--dataset-format":
            parser.form = value


def _overrides(name: str, value: str) -> Iterator[Override]:
    pairs = [(SERVICE_FLAGS[name], value)] if name in SERVICE_FLAGS else other_names.settings_of(name, value)
    for key, given in pairs:
        item = EVERY[key]
        source = f"{name}: {key}" if other_names.plain(name) in other_names.IMPLIED else name
        yield Override(item.section, item.key, given, source)


def _typed_positions(words: Sequence[str]) -> list[str]:
    """Positions to be typed before the flags; one that would be taken for a flag is set with one."""
    if not any(words):
        return []
    if any(word.startswith("-") and word != "-" for word in words):
        flags = [flag for _, key in POSITIONS for flag, known in SETTING_FLAGS.items() if known == key]
        return [f"{flag}={word}" for flag, word in zip(flags, words, strict=False) if word]
    return list(words)


def _next(parser: _Parser) -> str:
    """The next argument as a value; nothing when it is a flag (a value such as --x is written with =)."""
    return parser.left.pop(0) if parser.left and not parser.left[0].startswith("--") else ""


def _command_or_switch(parser: _Parser, name: str, value: str | None) -> None:
    if name in SWITCHES:
        parser.switches.add(name)
    elif name not in parser.commands:
        parser.commands.append(name)
    takes = COMMANDS[name][0] if name in COMMANDS else ""
    if value is not None and (not takes or not value):
        parser.problems.append(f"{name} takes no value" if not takes else f"{name}=: names no run")
    elif value is not None:
        parser.runs.append(value)
    while takes and value is None and parser.left and not parser.left[0].startswith("-"):
        text = parser.left.pop(0)
        parser.runs += [text] if text else []
        if not takes.endswith("..."):
            break


def _set(parser: _Parser, text: str) -> None:
    """--set Section.KEY=VALUE. Names that do not exist are left to settings.load, which knows the near ones."""
    name, equals, value = text.partition("=")
    section, dot, key = name.strip().partition(".")
    if dot and equals and section and key:
        parser.flags.append(Override(section, key, value, f"--set {section}.{key}"))
        return
    fitting = [known for known, item in EVERY.items() if item.key == name.strip().upper()]
    example = f"{fitting[0]}={value or 'VALUE'}" if fitting else "Section.KEY=VALUE, as in LoRA.R=8"
    parser.problems.append(f"--set {ini_file.show(text)}: write {example}")


def _positions(parser: _Parser) -> Iterator[Override]:
    """The overrides of DATA OUTPUT_DIR BASE_MODEL EPOCHS. An empty one was not given."""
    for number, ((label, key), value) in enumerate(zip(POSITIONS, parser.positions), start=1):  # noqa: B905
        source = f"argument {number} ({label})"
        if value in NOT_GIVEN:
            parser.problems.append(f'{source} = {value}: is no value; give "" to take the one in the settings file')
        elif value and number == 1 and not parser.commands and (instead := _command_instead(value)):
            parser.problems.append(instead)
            return
        elif value:
            for set_key, given in other_names.settings_of(TABLE[key].key, value):
                yield Override(TABLE[set_key].section, TABLE[set_key].key, given, source)
    if len(parser.positions) > len(POSITIONS):
        extra = ", ".join(ini_file.show(text) for text in parser.positions[len(POSITIONS) :])
        parser.problems.append(f"too many arguments: {extra}; there are four: {' '.join(p for p, _ in POSITIONS)}")


def _command_instead(word: str) -> str:
    """What to write for a command that was given as a bare word, where no file has its name."""
    instead = other_names.instead_of(word)
    try:
        return (
            f"{word} is read as DATA, and there is no such file; {instead}"
            if instead and not Path(word).exists()
            else ""
        )
    except OSError:
        return ""


def _check_together(parser: _Parser) -> None:
    """Note what does not go together."""
    if len(parser.commands) > 1:
        parser.problems.append(f"{' and '.join(parser.commands)} exclude each other")
        return
    command = parser.commands[0].removeprefix("--") if parser.commands else "run"
    data = [flag.value for flag in parser.flags if flag.key == "DATASET_FILE"]
    if data and (reason := other_names.wrong_form(parser.form, data[-1])):
        parser.problems.append(f"--dataset-format {parser.form}: {reason}")
    if command == "compare" and len(parser.runs) < 2:
        parser.problems.append("--compare needs two runs or more: --compare RUN RUN; --history lists them")
    if command == "whois" and len(parser.runs) != 1:
        parser.problems.append("--whois needs a GGUF file, or the name of a model in Ollama")
    for switch in sorted(parser.switches):
        if command not in SWITCH_NEEDS[switch.removeprefix("--")]:
            parser.problems.append(f"{switch} does not go with {'a run' if command == 'run' else '--' + command}")
    if {"--detach", "--events"} <= parser.switches:
        parser.problems.append("--detach and --events exclude each other: follow with --follow --events")
    if command not in (*TRAINS, "check", "prove") and any(parser.positions):
        parser.problems.append(f"--{command} takes {COMMANDS['--' + command][0] or 'no further argument'}")


def _run(text: str) -> Path:
    """A RUN: a path from the caller's folder when it is one, else a name to look up in OUTPUT_DIR."""
    path = _from_here(text)
    try:
        return path if "/" in text or path.exists() else Path(text)
    except OSError:  # too long for a name
        return path


def _from_here(text: str) -> Path:
    """The absolute path of an argument. Raises UserError where `~somebody` has no home folder."""
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:
        raise UserError(f"{ini_file.show(text)}: {error}") from None
    return path if path.is_absolute() else loading.here() / path


def refuse(error: FinetuneError, argv: Sequence[str]) -> int:
    """Tell what is wrong with arguments or settings: on stderr, and to a program that listens (--events) as an event."""
    privacy.tell(error)
    if "--events" in argv and "--follow" not in argv:  # there the lines are another run's
        told = events.as_line("failed", exit_code=error.exit_code, error=str(error), **error.parts())
        listeners.tell(sys.stdout, told + "\n")
    return error.exit_code


def checked(argv: Sequence[str], check_packages: bool = False) -> tuple[int, Settings | None]:
    """Check the arguments and, where a run or its check is asked for, the settings; problems on stderr.

    The exit code, and the settings where this process itself is to train by them or to plan that.
    """
    settings = None
    try:
        arguments = parse(argv)
        if arguments.command in ("run", "check", "prove", "serve"):
            settings = loading.load(arguments.config, arguments.overrides, check_packages=check_packages)
    except FinetuneError as error:
        return refuse(error, argv), None
    return 0, settings if arguments.command in ("run", "check") and not arguments.detach else None


def main(argv: Sequence[str]) -> int:
    """Check the arguments and the settings. The exit code."""
    return checked(argv)[0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
