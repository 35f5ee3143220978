"""Passwords, tokens and escape codes: in no log, event, state file or report, and what a run keeps is its owner's alone."""

from __future__ import annotations

import io
import json
import os
import re
import stat
import string
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.support import small
from tests.support.paths import ROOT
from tests.support.programs import finetune
from tests.support.runs import a_manifest
from tests.support.tiny import write_tiny_config
from training import control
from training.base_model import sources, unpacking_process
from training.data import BadRow, dataset
from training.errors import UserError
from training.report import as_html, comparison
from training.runs import Run, checkpoint
from training.settings import command_line
from training.system import files, log, privacy
from training.system.events import Events

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

ACTING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u2028\u2029]")
LETTERS = string.ascii_letters + string.digits

# ---- what is shown ------------------------------------------------------------------------------------------------


def letters(least: int, alphabet: str = LETTERS) -> st.SearchStrategy[str]:
    return st.text(alphabet, min_size=least, max_size=least + 40)


SECRETS = st.one_of(
    st.builds("hf_{}".format, letters(20)),
    st.builds("sk-{}".format, letters(20, LETTERS + "-_")),
    st.builds("sk-proj-{}".format, letters(40, LETTERS + "-_")),
    st.builds("ghp_{}".format, letters(36)),
    st.builds("github_pat_{}".format, letters(22)),
    st.builds("glpat-{}".format, letters(20)),
    st.builds("xoxb-{}".format, letters(20)),
    st.builds("AKIA{}".format, st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16)),
    st.builds("AIza{}".format, st.text(LETTERS + "-_", min_size=35, max_size=35)),
    st.builds("eyJ{}.eyJ{}.{}".format, letters(20), letters(20), letters(20)),
    st.builds("-----BEGIN RSA PRIVATE KEY-----\n{}\n-----END RSA PRIVATE KEY-----".format, letters(64)),
    st.builds("-----BEGIN OPENSSH PRIVATE KEY-----\n{}".format, letters(64)),  # cut off
)
PASSWORDS = letters(8, LETTERS + "/@:#!")
ANY = st.one_of(
    st.text(),
    st.lists(
        st.one_of(
            st.sampled_from(["hf_", "sk-", "://", "https", "user", ":", "@", "\x1b[31m", "\r", "\x85", "\u202e", "Bearer ", "密"]),
            st.text(max_size=4),
            SECRETS,
        )
    ).map("".join),
)  # fmt: skip


@given(ANY)
def test_whatever_is_shown_holds_no_character_that_acts_and_is_shown_the_same_again(text):
    shown = privacy.shown(text)
    assert not ACTING.search(shown)
    shown.encode("utf-8")
    assert privacy.shown(shown) == shown


@given(
    st.text(st.characters(exclude_categories=("Cc", "Cs", "Cf", "Zl", "Zp"), exclude_characters="@_-."), max_size=80)
)
def test_text_without_secrets_and_control_characters_is_shown_as_it_is(text):
    assert privacy.shown(text) == text


@given(
    SECRETS,
    st.sampled_from(["", " ", "=", '"', "令牌", "token:", "\n", "\x1b[1m"]),
    st.sampled_from(["", " ", '"', "。", "\n"]),
)
def test_a_key_of_a_known_form_is_hidden_wherever_it_stands(secret, before, after):
    shown = privacy.shown(before + secret + after)
    assert secret not in shown and secret[-12:] not in shown
    assert privacy.HIDDEN in shown


@given(PASSWORDS, st.sampled_from(["", "http://", "https://", "postgresql://", "HF_ENDPOINT=", "在 "]))
@example("@0000000", "")
def test_a_password_in_an_address_is_hidden_also_without_its_scheme(password, scheme):
    shown = privacy.shown(f"{scheme}user:{password}@host.example:8080 fails")
    assert password not in shown
    assert shown.endswith("@host.example:8080 fails")


@pytest.mark.parametrize(
    "text",
    [
        "https://huggingface.co/org/name: read 12:30, ratio 3:4",
        "mail to somebody@example.com, or mailto:somebody@example.com; E-Mail:somebody@example.com",
        "http://localhost:8080/v1 and ssh://git@host/x",
        "image name:tag@sha256:0123456789abcdef, revision 7ae557604adf67be50417f59c2c2f167def9a775",
        "task-oriented-model-name, a bearer certificates-and-such, basic understanding",
        "@user: see @other; 用户: 你好; user:@other said",
    ],
)
def test_ordinary_words_are_left_alone(text):
    assert privacy.shown(text) == text


def test_secrets_of_the_environment_are_hidden_by_the_names_of_their_variables_and_in_addresses(monkeypatch):
    secrets = {
        "HF_TOKEN": "planted-token",
        "MY_TOKEN": "planted-token-and-more",  # begins with another one
        "PGPASSWORD": "planted-database",
        "WANDB_API_KEY": "0123456789abcdef0123456789abcdef01234567",
        "HTTPS_PROXY": "http://me:planted%21proxy@proxy:3128",
        "HF_ENDPOINT": "me:planted-endpoint@host",
    }
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MAX_TOKENS", "ordinary words")
    said = (
        "planted-token-and-more planted-token planted-database planted%21proxy planted!proxy planted-endpoint "
        + secrets["WANDB_API_KEY"]
    )
    assert set(privacy.shown(said).split()) == {privacy.HIDDEN}
    assert privacy.shown(f"ordinary words in {Path.cwd()}") == f"ordinary words in {Path.cwd()}"


@given(
    st.recursive(
        st.one_of(ANY, st.floats(), st.none()),
        lambda inner: st.lists(inner) | st.dictionaries(ANY, inner),
        max_leaves=6,
    )
)
def test_json_is_one_line_that_acts_on_no_terminal_and_reads_back(value):
    text = privacy.as_json(privacy.hidden(value))
    assert not ACTING.search(text) and "\n" not in text
    assert json.loads(text) == privacy.hidden(value)


# ---- where it is shown --------------------------------------------------------------------------------------------

TOKEN = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz"
HOSTILE = f"{TOKEN} \x1b]0;owned\x07 \x9b31m \u202e https://me:PLANTED-password@host"


def clean(*texts: str) -> None:
    """None of the planted things is in the texts, and something is said in their place."""
    for text in texts:
        assert TOKEN not in text and "PLANTED-password" not in text
        assert not ACTING.search(text)
        assert privacy.HIDDEN in text and ("\\x1b]0;owned" in text or "\\u001b]0;owned" in text)


@contextmanager
def logged(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    from loguru import logger

    monkeypatch.setattr(log, "SHARED_LOG", folder / "shared.log")
    log.start(folder / "run.log")
    yield folder / "run.log"
    logger.remove()


def test_log_lines_and_tracebacks_show_neither_secrets_nor_escape_codes(tmp_path, monkeypatch, capsys):
    from loguru import logger

    with logged(tmp_path, monkeypatch) as own:
        logger.info("a row: {}", HOSTILE)
        try:
            raise ValueError(HOSTILE)
        except ValueError:
            logger.opt(exception=True).info("unexpected")
        clean(
            own.read_text(encoding="utf-8"),
            (tmp_path / "shared.log").read_text(encoding="utf-8"),
            capsys.readouterr().err,
        )


@pytest.fixture
def told(tmp_path: Path) -> Run:
    """A run that failed, and whose files another version wrote, with everything planted in them."""
    run = Run(tmp_path / "outputs" / "finetune_20261129_101500")
    run.path.mkdir(parents=True)
    (run.path / "config.ini").write_text(
        "[Model]\nNEW_MODEL_NAME = x\n[Training]\nOUTPUT_DIR = " + str(tmp_path / "outputs") + "\n"
    )
    record = {
        "state": "failed",
        "error": HOSTILE,
        "model": HOSTILE,
        "updated": 1.0,
        "started": 0.5,
        "pid": 1,
        "pid_started": 1,
    }
    (run.path / "status.json").write_text(json.dumps(record))
    line = json.dumps({"v": 1, "event": "sample", "answer": HOSTILE}, ensure_ascii=False)
    (run.path / "events.jsonl").write_text(line + "\n")
    (run.path / "finetune.log").write_text(f"a row: {HOSTILE}\n")
    return run


@pytest.mark.parametrize(
    "command", ["--status", "--status --json", "--history", "--history --json", "--follow", "--follow --events"]
)
def test_what_is_read_from_a_run_is_shown_without_secrets_and_escape_codes(told, command):
    argv = ["--config", str(told.path / "config.ini"), *command.split()]
    arguments, out = command_line.parse(argv), io.StringIO()
    ends_as_the_run_did = 1 if arguments.command == "follow" else 0
    assert control.COMMANDS[arguments.command](arguments, out) == ends_as_the_run_did
    clean(out.getvalue())
    if "--json" in command or "--events" in command:
        json.loads(out.getvalue())


def test_runs_that_are_compared_show_neither(told, tmp_path):
    other = tmp_path / "outputs" / "finetune_20261129_101600"
    other.mkdir()
    for file in told.path.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    (other / "config.ini").write_text(f'[Model]\nSYSTEM_PROMPT = "{HOSTILE}"\n', encoding="utf-8")
    path, shown = comparison.compare([Run(told.path), Run(other)], tmp_path)
    clean(path.read_text(encoding="utf-8"))
    # The text says less, and none of it.
    assert TOKEN not in shown and not ACTING.search(shown)
    clean(as_html.text(HOSTILE))


def test_events_states_and_rejected_rows_hold_neither(tmp_path):
    out = io.StringIO()
    Events(tmp_path / "events.jsonl", out).emit("sample", answer=HOSTILE, run=str(tmp_path))
    Run(tmp_path).update(error=HOSTILE, stages={"evaluate": {"samples": [{"question": HOSTILE}]}})
    dataset.write_rejected(tmp_path / "rejected.jsonl", [BadRow("rows.jsonl", 3, HOSTILE)])
    clean(out.getvalue(), *(path.read_text(encoding="utf-8") for path in tmp_path.iterdir()))
    assert json.loads(out.getvalue())["run"] == str(tmp_path)


def test_a_refusal_before_the_log_is_there_shows_neither(capsys):
    command_line.refuse(UserError(HOSTILE), ["--events"])
    said = capsys.readouterr()
    clean(said.err, said.out)
    json.loads(said.out)


def test_a_text_is_cut_short_after_its_secrets_are_hidden():
    from training.report import as_markdown
    from training.settings import ini_file

    cut = "x" * 40 + f" https://me:PLANTED-password{'y' * 80}@host"
    for text in (ini_file.show(cut), as_markdown.beginning(cut, 60)):
        assert "PLANTED" not in text


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_name_of_a_folder_is_told_to_programs_as_it_is_and_to_a_terminal_as_it_can_be_shown():
    path, program, person = Path("/data/sk-learn-experiments-2026/\x1b[31m"), io.StringIO(), Terminal()
    log.say_path(program, path)
    log.say_path(person, path)
    assert program.getvalue() == f"{path}\n"
    assert person.getvalue() == "/data/sk-learn-experiments-2026/\\x1b[31m\n"


# ---- a run that is resumed ----------------------------------------------------------------------------------------


def test_a_fingerprint_keeps_no_secret_and_still_tells_two_of_them_apart(tmp_path, monkeypatch):
    marks = {"Model.SYSTEM_PROMPT": f"Say {HOSTILE}", "Training.SEED": 1}
    with checkpoint.writing(tmp_path, a_manifest(3, fingerprint=marks)):
        pass
    found = checkpoint.newest(tmp_path)
    assert found is not None
    text = (found.path / checkpoint.MANIFEST).read_text(encoding="utf-8")
    assert TOKEN not in text and "PLANTED" not in text
    checkpoint.refuse_mismatch(found.manifest.fingerprint, marks)
    checkpoint.refuse_mismatch(marks, marks)  # of an older version, which hid nothing
    with pytest.raises(
        UserError, match=r"SYSTEM_PROMPT = .*\(SHA-256 \w{8}\)' in the run, .*\(SHA-256 \w{8}\)' now"
    ) as refused:
        checkpoint.refuse_mismatch(found.manifest.fingerprint, {**marks, "Model.SYSTEM_PROMPT": f"Say {HOSTILE}x"})
    assert TOKEN not in str(refused.value) and "PLANTED" not in str(refused.value)


def test_a_fingerprint_does_not_depend_on_the_secrets_of_the_environment(monkeypatch):
    marks = {"Model.SYSTEM_PROMPT": "You are helpful-1"}
    monkeypatch.setenv("SOME_PASSWORD", "helpful-1")
    stored = checkpoint.kept(marks)
    assert "helpful-1" not in str(stored)
    monkeypatch.delenv("SOME_PASSWORD")
    checkpoint.refuse_mismatch(stored, marks)


# ---- modes --------------------------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@contextmanager
def masked(umask: int) -> Iterator[None]:
    before = os.umask(umask)
    try:
        yield
    finally:
        os.umask(before)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077, 0o277])
def test_files_and_folders_are_the_owners_alone_whatever_the_umask_says(tmp_path, umask, monkeypatch):
    from loguru import logger

    with masked(umask), logged(tmp_path, monkeypatch):
        logger.info("x")
        files.write_json(tmp_path / "a.json", {})
        Events(tmp_path / "b.jsonl").emit("x")
        files.private_folder(tmp_path / "c")
        with files.whole_folder(tmp_path / "d") as folder:
            (folder / "weights").touch()
            (folder / "weights").chmod(0o644)  # as safetensors does
    for name in ("a.json", "b.jsonl", "d/weights", "run.log", "shared.log"):
        assert mode(tmp_path / name) == 0o600, name
    assert mode(tmp_path / "c") == mode(tmp_path / "d") == 0o700


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_what_is_made_to_be_passed_on_has_the_mode_of_the_umask(tmp_path, umask):
    with masked(umask):
        files.write_text(tmp_path / "Modelfile", "FROM x", shared=True)
        with files.whole_folder(tmp_path / "merged", shared=True) as folder:
            (folder / "config.json").write_text("{}")
            (folder / "model.safetensors").touch(0o600)  # the copy of a private one
    assert mode(tmp_path / "Modelfile") == mode(tmp_path / "merged/config.json") == 0o666 & ~umask
    assert mode(tmp_path / "merged") == 0o777 & ~umask
    assert mode(tmp_path / "merged/model.safetensors") == 0o600


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_a_model_unpacked_from_a_file_has_the_mode_of_the_umask(tmp_path, umask, monkeypatch):
    def unpack(_gguf: Path, folder: Path, _say: Any) -> None:
        files.write_json(folder / "model.safetensors.index.json", {})
        (folder / "model.safetensors").touch(0o600)  # as safetensors does

    monkeypatch.setattr(unpacking_process, "unpack", unpack)
    (tmp_path / "m.gguf").touch()
    with masked(umask):
        sources._unpack(tmp_path / "m.gguf", tmp_path / "m", print)
    assert {mode(file) for file in (tmp_path / "m").iterdir()} == {0o666 & ~umask}


def test_logs_events_and_caches_that_an_older_version_left_open_are_closed(tmp_path, monkeypatch):
    for name in ("run.log", "shared.log", "b.jsonl"):
        (tmp_path / name).touch(0o644)
        (tmp_path / name).chmod(0o644)
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows").chmod(0o755)
    with logged(tmp_path, monkeypatch):
        from loguru import logger

        logger.info("x")
    Events(tmp_path / "b.jsonl").emit("x")
    files.private_folder(tmp_path / "rows")
    assert [mode(tmp_path / name) for name in ("run.log", "shared.log", "b.jsonl", "rows")] == [0o600] * 3 + [0o700]


# ---- the Hub's address --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("user:PLANTED@host", "HF_ENDPOINT needs https:// in front of host"),
        ("hf-mirror.example", "HF_ENDPOINT needs https:// in front of hf-mirror.example"),
        ("ftp://user:PLANTED@host/x", "HF_ENDPOINT needs https:// in front of host/x"),
        ("https://user:PLANTED/word@host", "HF_ENDPOINT = https://[hidden]@host is no address; it is written"),
        ("https://host:port", "HF_ENDPOINT = https://host:port is no address; it is written"),
        ("http://user:PLANTED@[::1]:9", "the Hub (http://[::1]:9) cannot be reached for org/name"),
    ],
)
@pytest.mark.slow
def test_an_address_of_the_hub_that_is_none_is_told_as_what_it_is(address, said, tmp_path):
    clean_environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    code = "from training.base_model import hub\nfrom training.errors import MachineError\ntry:\n    hub.download('org/name', None, False, print)\nexcept MachineError as error:\n    print(error)"
    done = started(code, clean_environment | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)})
    assert done.startswith(said) and "PLANTED" not in done and "Traceback" not in done


@pytest.mark.slow
@pytest.mark.parametrize(
    "proxy", ["ftp://user:PLANTED@host", "http://user:PLANTED@host:port", "socks5://user:PLANTED@127.0.0.1:1080"]
)
def test_a_proxy_that_is_none_is_told_without_its_password(proxy, tmp_path):
    clean_environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    code = "from training.base_model import hub\nfrom training.errors import MachineError\ntry:\n    hub.download('org/name', None, False, print)\nexcept MachineError as error:\n    print(error)"
    done = started(
        code, clean_environment | {"ALL_PROXY": proxy, "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    )
    assert done.startswith(
        "the proxy in HTTPS_PROXY, HTTP_PROXY or ALL_PROXY cannot be used: it is written http://HOST:PORT"
    )
    assert "PLANTED" not in done and "Traceback" not in done


@pytest.mark.slow
def test_ranges_of_addresses_in_no_proxy_are_told_as_what_is_in_the_way(tmp_path):
    clean_environment = {k: v for k, v in os.environ.items() if not k.startswith("HF_") and "proxy" not in k.lower()}
    code = "from training.base_model import hub\nfrom training.errors import MachineError\ntry:\n    hub.download('org/name', None, False, print)\nexcept MachineError as error:\n    print(error)"
    given = {"no_proxy": "localhost,::1,fe80::/10", "HF_HOME": str(tmp_path), "HF_ENDPOINT": "http://127.0.0.1:9"}
    done = started(code, clean_environment | given)
    assert done == "NO_PROXY: ranges of addresses cannot be read there (fe80::/10): leave them out\n"


def started(code: str, environment: dict[str, str]) -> str:
    import subprocess

    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    return done.stdout + done.stderr


# ---- a whole run --------------------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_planted_secrets_and_escape_codes_are_in_nothing_that_a_run_says_or_keeps_and_its_files_are_its_owners(
    tmp_path, tiny_model
):
    config = write_tiny_config(tmp_path, tiny_model)
    rows = [
        {"instruction": f"What is {i} and {i}? {HOSTILE}", "output": f"It is {2 * i}. {HOSTILE}"} for i in range(1, 17)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    system = f"Your key is {TOKEN}."
    text = config.read_text(encoding="utf-8").replace("[Dataset]", f"SYSTEM_PROMPT = {system}\n[Dataset]")
    config.write_text(text.replace("EVAL_STEPS = 3", "SAMPLE_STEPS = 3"), encoding="utf-8")
    for file in tiny_model.iterdir():  # the merged model is as open as its base, which safetensors writes for its owner
        file.chmod(0o666)
    secret = {"MY_API_KEY": "planted-in-environment", "HF_ENDPOINT": "me:PLANTED-endpoint@host"}
    with masked(0):
        ended = finetune("--config", config, "--events", **secret)
    assert ended.code == 0, ended.stderr
    assert "SYSTEM_PROMPT = Your key is [hidden]. holds what looks like a password or a key" in ended.stderr
    run = Path(json.loads(ended.stdout.splitlines()[-1])["run"])
    passed_on = {"Modelfile", "config.ini"}
    said = {"stdout": ended.stdout, "stderr": ended.stderr} | {
        str(path.relative_to(run)): path.read_text(encoding="utf-8")
        for path in run.rglob("*")
        if path.is_file() and path.suffix in (".json", ".jsonl", ".log", ".md", ".html") and "merged" not in path.parts
    }
    assert {
        "events.jsonl",
        "status.json",
        "finetune.log",
        "report.md",
        "report.html",
        "checkpoints/export.json",
    } <= said.keys()
    for name, text in said.items():
        for planted in (TOKEN, "PLANTED", "planted-in-environment"):
            assert planted not in text, name
        assert not ACTING.search(text), name
    for name in passed_on:
        assert system in (run / name).read_text(encoding="utf-8"), "it is trained with, and shipped"
    for path in (run, *run.rglob("*")):
        name = path.relative_to(run)
        shared = name == Path() or name.parts[0] in ("merged", "Modelfile") or name.suffix == ".gguf"
        wanted = (0o777, 0o666) if shared else (0o700, 0o600)
        assert mode(path) == wanted[path.is_file()], name
    from training.plan import plan

    assert mode(plan.CACHE) == 0o700
