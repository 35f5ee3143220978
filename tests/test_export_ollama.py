"""export_ollama.sh, against a fake Ollama (tests/fake_ollama.sh): the real one needs a server, which is not there."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
import threading
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.settings import a_settings
from training.ollama import Chat, compose, modelfile, modelfile_syntax, server, template_probe
from training.settings import ini_file, names, table

pytestmark = pytest.mark.slow
FAKE = ROOT / "tests" / "fake_ollama.sh"
TEMPLATE = "{{ range .Messages }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n{{ end }}<|im_start|>assistant\n"
MODELFILE = (
    f'FROM ./my-assistant.Q4_K_M.gguf\nTEMPLATE """{TEMPLATE}"""\nPARAMETER stop "<|im_end|>"\nPARAMETER num_ctx 512\n'
)


@pytest.fixture
def place(tmp_path):
    """A copy of the script with a finished run beside it, in a folder whose name has spaces and Chinese characters."""
    root = tmp_path / "a folder 训练"
    run = root / "outputs" / "finetune_20260101_120000"
    run.mkdir(parents=True)
    shutil.copy(ROOT / "export_ollama.sh", root)
    (root / "config.ini").write_text("[Training]\nOUTPUT_DIR = outputs\n")
    (run / "config.ini").write_text("[Model]\nNEW_MODEL_NAME = team/my-assistant:v1\n")
    (run / "my-assistant.Q4_K_M.gguf").write_bytes(b"GGUF")
    (run / "my-assistant.F16.gguf").write_bytes(b"GGUF")
    (run / "Modelfile").write_text(MODELFILE)
    (run / "status.json").write_text("{}")
    (run / "report.json").write_text("{}")
    (root / "outputs" / "latest").symlink_to(run.name)
    return root


@pytest.fixture
def run(place):
    return place / "outputs" / "finetune_20260101_120000"


@pytest.fixture
def store(tmp_path):
    """What the fake Ollama was told, and where it is told how to behave."""
    folder = tmp_path / "store"
    folder.mkdir()
    (folder / "calls").touch()
    return folder


@pytest.fixture
def call(place, tmp_path, store):
    """Run the script; `ollama` False leaves the fake one out."""

    def call(*arguments, ollama=True, shell="bash", cwd=None, stderr=subprocess.PIPE, **environment):
        programs = tmp_path / "programs"
        programs.mkdir(exist_ok=True)
        (programs / "ollama").unlink(missing_ok=True)
        if ollama:
            (programs / "ollama").symlink_to(FAKE)
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_OLLAMA": str(store), **environment}
        script = [shell, str(place / "export_ollama.sh"), *map(str, arguments)]
        return subprocess.run(
            script, stdout=subprocess.PIPE, stderr=stderr, text=True, env=env, cwd=cwd or tmp_path, timeout=60
        )

    return call


def calls(store):
    return (store / "calls").read_text().splitlines()


def test_the_newest_run_goes_into_ollama_under_its_own_name_and_answers(call, run, store):
    done = call()
    assert (done.returncode, done.stdout) == (0, "team/my-assistant:v1\n"), done.stderr
    modelfile = run / "Modelfile.team-my-assistant-v1"
    assert calls(store) == [
        "list",
        f"create team/my-assistant:v1 -f {modelfile}",
        "show --template team/my-assistant:v1",
        "show --modelfile team/my-assistant:v1",
        "run --nowordwrap team/my-assistant:v1 Who are you?",
    ]
    assert "I am a fine-tuned assistant." in done.stderr
    assert modelfile.read_text() == MODELFILE


def test_a_run_its_merged_folder_and_a_gguf_file_all_name_the_run(call, run, tmp_path):
    (run / "merged").mkdir()
    relative = os.path.relpath(run, tmp_path)
    for given in (run, f"{run}/", run / "merged", run / "my-assistant.Q4_K_M.gguf", relative, f"{relative}/merged/"):
        done = call("--modelfile-only", given)
        assert (done.returncode, done.stdout) == (0, f"{run}/Modelfile.team-my-assistant-v1\n"), (given, done.stderr)


def test_the_names_that_guides_have_for_what_a_run_made_name_the_run(call, run):
    (run / "merged").mkdir()
    for name in ("merged_model", "final_model"):
        (run.parent / name).symlink_to(f"{run.name}/merged")
        assert call("--modelfile-only", run.parent / name, "mine").stdout == f"{run}/Modelfile.mine\n"
        assert call("--modelfile-only", f"{name}/", "mine", cwd=run.parent).stdout == f"{run}/Modelfile.mine\n"


def test_the_modelfile_is_found_from_the_folder_one_stands_in_too(call, run, tmp_path):
    """`ollama create my-name -f Modelfile.my-name` is what guides go on with."""
    call("--modelfile-only", run, "my-name")
    first, second, *rest = (tmp_path / "Modelfile.my-name").read_text().splitlines()
    assert first.startswith("# ") and first.endswith(f"{run}/Modelfile.my-name")
    assert second == f"FROM {run}/my-assistant.Q4_K_M.gguf"
    assert rest == (run / "Modelfile.my-name").read_text().splitlines()[1:]
    call("--modelfile-only", run / "my-assistant.F16.gguf", "my-name")
    assert f"FROM {run}/my-assistant.F16.gguf\n" in (tmp_path / "Modelfile.my-name").read_text()


def test_in_the_run_itself_there_is_no_second_one(call, run):
    (run / "merged").mkdir()
    for folder in (run, run / "merged"):
        call("--modelfile-only", run, "my-name", cwd=folder)
        assert [path.name for path in run.rglob("Modelfile.my-name")] == ["Modelfile.my-name"]
        assert (run / "Modelfile.my-name").read_text().startswith("FROM ./")


def test_a_modelfile_of_ones_own_is_left_alone(call, run, tmp_path):
    (tmp_path / "Modelfile.my-name").write_text("FROM my own\n")
    ended = call("--modelfile-only", run, "my-name")
    assert (tmp_path / "Modelfile.my-name").read_text() == "FROM my own\n"
    assert f"{tmp_path}/Modelfile.my-name is there already and was left alone" in ended.stderr
    assert ended.returncode == 0


def test_run_as_a_dot_from_inside_names_the_absolute_path(call, run):
    assert call("--modelfile-only", ".", cwd=run).stdout == f"{run}/Modelfile.team-my-assistant-v1\n"


def test_another_gguf_of_the_run_gets_a_modelfile_from_it(call, run, store):
    done = call(run / "my-assistant.F16.gguf", "other")
    assert (done.returncode, done.stdout) == (0, "other\n"), done.stderr
    assert (run / "Modelfile.other").read_text() == MODELFILE.replace("Q4_K_M", "F16")


def test_doing_it_twice_changes_no_file_and_starts_no_python(call, run):
    assert call().returncode == 0, "there is no .venv beside the script"
    before = {file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir() if file.is_file()}
    assert call().returncode == 0
    assert {
        file.name: (file.stat().st_mtime_ns, file.read_bytes()) for file in run.iterdir() if file.is_file()
    } == before


def test_modelfile_only_never_asks_ollama(call, store):
    assert call("--modelfile-only").returncode == 0
    assert calls(store) == []


def test_without_ollama_it_writes_the_modelfile_and_says_the_command(call, run):
    done = call(ollama=False, PATH=without("ollama"))
    path = run / "Modelfile.team-my-assistant-v1"
    assert (done.returncode, done.stdout) == (3, f"{path}\n"), done.stderr
    assert path.read_text() == MODELFILE
    command = done.stderr[done.stderr.index("ollama create") :].strip()
    words = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True).stdout
    assert words.split("\n")[:5] == ["ollama", "create", "team/my-assistant:v1", "-f", str(path)]  # quoted for a shell


def without(program):
    """A PATH on which `program` is not, should this machine have it."""
    return ":".join(p for p in os.environ["PATH"].split(":") if not (Path(p) / program).exists())


def test_an_ollama_that_is_not_running_is_the_machines_fault(call, run, store):
    (store / "down").touch()
    done = call()
    assert (done.returncode, done.stdout) == (3, f"{run}/Modelfile.team-my-assistant-v1\n")
    assert "could not connect" in done.stderr and "ollama serve" in done.stderr


LLAMA_CPP = Path(sys.prefix) / "llama.cpp/models/templates"
OURS = "this Ollama uses the Modelfile's TEMPLATE"
THE_GGUFS = "this Ollama uses the chat template in the GGUF, the one trained with"
OLD, NEW = "0.24.0", "0.32.15"
TOOLS = (LLAMA_CPP / "Qwen-Qwen2.5-7B-Instruct.jinja").read_text(encoding="utf-8")
COUNTS = "{% for message in messages %}{{ loop.index }}{{ message.content }}{% endfor %}"


def write_gguf(path: Path, jinja: str | None) -> None:
    """A GGUF file of nothing but metadata, with a chat template or without."""
    from gguf import GGUFWriter

    writer = GGUFWriter(path, "llama")
    if jinja is not None:
        writer.add_chat_template(jinja)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def exported(run: Path, jinja: str | None, in_gguf: str | None = None, adapter_of: str | None = None) -> Path:
    """Export a model that chats by `jinja` (None: plain text) into a run; its GGUF holds the same, or `in_gguf`."""
    gguf = run / "my-assistant.Q4_K_M.gguf"
    write_gguf(gguf, jinja if in_gguf is None else in_gguf)
    chat = None
    if jinja is not None:
        template = template_probe.environment(datetime(2026, 3, 1)).from_string(jinja)
        names = {"tools": None, "documents": None, "bos_token": "<s>", "eos_token": "</s>"}
        chat = Chat(
            lambda messages, ask: template.render(messages=messages, add_generation_prompt=ask, **names),
            jinja=jinja, bos="<s>", eos="</s>",
        )  # fmt: skip
    path = run / ("Modelfile" if adapter_of is None else "Modelfile.mine")
    name = gguf.name if adapter_of is None else "my-assistant.adapter.gguf"
    path.write_text(compose(name, chat, stops=["</s>"], num_ctx=512, adapter_of=adapter_of))
    return path


@pytest.mark.parametrize(
    ("family", "new"),
    [
        ("Qwen-Qwen2.5-7B-Instruct", THE_GGUFS),
        ("Qwen-Qwen3-0.6B", THE_GGUFS),
        ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B", THE_GGUFS),
        ("meta-llama-Llama-3.1-8B-Instruct", THE_GGUFS),
        ("mistralai-Mistral-Nemo-Instruct-2407", THE_GGUFS),
        ("google-gemma-2-2b-it", OURS),
        ("microsoft-Phi-3.5-mini-instruct", OURS),
    ],
)
def test_both_kinds_of_server_take_the_export_of_a_family_and_one_line_says_whose_template_is_used(
    call, run, family, new
):
    exported(run, (LLAMA_CPP / f"{family}.jinja").read_text(encoding="utf-8"))
    for version, said in ((OLD, OURS), (NEW, new), ("0.0.0", new)):
        done = call(FAKE_VERSION=version)
        assert (done.returncode, done.stdout) == (0, "team/my-assistant:v1\n"), (version, done.stderr)
        assert [line for line in done.stderr.splitlines() if "this Ollama uses" in line] == [said], version
        assert "warning" not in done.stderr


@pytest.mark.parametrize("version", [OLD, NEW])
@pytest.mark.parametrize("jinja", [TOOLS, None], ids=["chats", "plain text"])
def test_a_template_that_ollama_replaced_is_found_out(call, run, store, version, jinja):
    exported(run, jinja)
    (store / "template").write_text("{{ .System }} {{ .Prompt }}")
    done = call(FAKE_VERSION=version)
    assert (done.returncode, done.stdout) == (1, "")
    assert "another template" in done.stderr


def test_a_gguf_with_another_chat_template_than_the_one_trained_with_is_found_out(call, run):
    exported(run, TOOLS, in_gguf=TOOLS.replace("Alibaba Cloud", "somebody"))
    assert call(FAKE_VERSION=OLD).returncode == 0, "which uses TEMPLATE"
    done = call(FAKE_VERSION=NEW)
    assert (done.returncode, done.stdout) == (1, "")
    assert "another template" in done.stderr


@pytest.mark.parametrize(
    "jinja",
    [
        TOOLS + "\n\n",
        TOOLS.replace("\n", "\r\n"),
        TOOLS + "{# \u4e2d\u6587 \U0001f600 %s \\n $(id) `id` \" ' \\ #}",
        "{# -e tools #}" + TOOLS,
        TOOLS + "{#" + "x" * 100_000 + "#}",
    ],
    ids=["line ends", "CRLF", "letters of shells", "an option", "long"],
)
def test_the_ggufs_template_is_known_whatever_it_contains(call, run, jinja):
    exported(run, jinja)
    done = call(FAKE_VERSION=NEW)
    assert done.returncode == 0, done.stderr
    assert THE_GGUFS in done.stderr


def test_a_model_without_template_is_served_by_the_ggufs_or_it_is_found_out(call, run, store):
    assert "TEMPLATE " not in exported(run, COUNTS).read_text().replace("# TEMPLATE", "#")
    done = call(FAKE_VERSION=NEW)
    assert done.returncode == 0, done.stderr
    assert THE_GGUFS in done.stderr
    (store / "stock").write_text("{{ range .Messages }}{{ .Content }}{{ end }}")
    done = call(FAKE_VERSION=NEW)
    assert (done.returncode, done.stdout) == (1, "")
    assert "From 0.30.0 on, OLLAMA_GO_TEMPLATE=false in its server's environment" in done.stderr


def test_a_model_of_plain_text_is_not_served_by_a_chat_template_of_its_base(call, run):
    exported(run, None, in_gguf=TOOLS)
    assert call(FAKE_VERSION=OLD).returncode == 0
    done = call(FAKE_VERSION=NEW)
    assert (done.returncode, done.stdout) == (1, "")
    assert "OLLAMA_GO_TEMPLATE=true in its server's environment" in done.stderr
    exported(run, None, in_gguf="")
    assert call(FAKE_VERSION=NEW).returncode == 0


def test_a_modelfile_that_does_not_say_what_was_trained_passes_with_a_warning(call, run):
    path = exported(run, TOOLS)
    path.write_text(re.sub(r"# Chats by .*\n", "", path.read_text()))
    assert "warning" not in call(FAKE_VERSION=OLD).stderr
    done = call(FAKE_VERSION=NEW)
    assert done.returncode == 0, done.stderr
    assert "Whether it is the one trained with was not checked: " in done.stderr
    assert f"{run}/Modelfile.team-my-assistant-v1 does not say which that is\n" in done.stderr
    path.write_text(path.read_text().replace("\n", "\r\n"))
    assert call(FAKE_VERSION=OLD).returncode == 0, "line ends of Windows are none of the template's"


def test_without_a_program_for_sha_256_it_says_that_it_could_not_check(call, run, tmp_path):
    exported(run, TOOLS)
    assert call("--modelfile-only").returncode == 0
    for program in ("sha256sum", "shasum", "openssl"):
        (tmp_path / "programs" / program).write_text("#!/bin/sh\nexit 127\n")
        (tmp_path / "programs" / program).chmod(0o755)
    done = call(FAKE_VERSION=NEW)
    assert done.returncode == 0, done.stderr
    assert "was not checked: no sha256sum, shasum or openssl is here\n" in done.stderr


@pytest.mark.parametrize("program", ["sha256sum", "shasum -a 256", "openssl dgst -sha256 -r"])
def test_each_program_for_sha_256_serves(tmp_path, program):
    name = program.split()[0]
    if not shutil.which(name):
        pytest.skip(f"{name} is not here")
    function = re.search(r"^digest\(\) .*$", (ROOT / "export_ollama.sh").read_text(), re.MULTILINE)[0]
    assert program in function
    for tool in (name, "cut"):
        (tmp_path / tool).symlink_to(shutil.which(tool))
    command = ["/bin/bash", "-c", f"{function}\nprintf '%s' \"$1\" | digest", "-", TOOLS.rstrip("\n")]
    said = subprocess.run(command, capture_output=True, text=True, env={"PATH": str(tmp_path)}).stdout
    assert said == modelfile.fingerprint(TOOLS) + "\n"


def test_an_adapter_is_served_by_a_template_of_its_base_or_by_ours_or_it_is_found_out(call, run, store):
    (store / "models").write_text("base:1b\n")
    (run / "my-assistant.adapter.gguf").write_bytes(b"GGUF")
    exported(run, TOOLS, adapter_of="base:1b")
    for base, used, code, said in (
        ("{{ .Prompt }}", None, 0, OURS),
        (TOOLS, TOOLS, 0, THE_GGUFS),
        (TOOLS + "{# edited #}", TOOLS + "{# edited #}", 0, "warning: this Ollama uses base:1b's own chat template"),
        ("{{ .Prompt }}", "{{ .Prompt }}", 1, "another template"),
        (TOOLS, TOOLS + "{# edited #}", 1, "another template"),
    ):
        (store / "base").write_text(base)
        (store / "template").unlink(missing_ok=True)
        if used:
            (store / "template").write_text(used)
        done = call("--adapter", "base:1b", run, "mine")
        assert (done.returncode, said in done.stderr) == (code, True), (base[:20], done.stderr)


def test_an_adapter_without_template_is_served_by_its_bases(call, run, store):
    (store / "models").write_text("base:1b\n")
    (run / "my-assistant.adapter.gguf").write_bytes(b"GGUF")
    exported(run, COUNTS, adapter_of="base:1b")
    (store / "base").write_text("{{ range .Messages }}{{ .Content }}{{ end }}")
    shutil.copy(store / "base", store / "template")
    done = call("--adapter", "base:1b", run, "mine")
    assert done.returncode == 0, done.stderr
    assert "this Ollama uses base:1b's own chat template, which is not letter for letter" in done.stderr


def test_an_ollama_that_cannot_tell_its_template_passes_with_a_warning(call, store):
    (store / "silent").touch()
    done = call()
    assert done.returncode == 0, done.stderr
    assert "warning: this Ollama does not tell which chat template it uses" in done.stderr


def test_an_ollama_with_a_renderer_of_its_own_for_the_architecture_passes_with_a_warning(call, store):
    (store / "renderer").write_text("gemma4")
    done = call()
    assert done.returncode == 0, done.stderr
    assert "writes prompts with its own renderer gemma4" in done.stderr
    assert "this Ollama uses" not in done.stderr


@pytest.mark.parametrize(
    ("version", "code"),
    [("0.29.9", 3), ("0.30.0", 0), ("0.100.0", 0), ("1.0.1", 0), ("0.5.7", 3), ("0.30.0-rc1", 0), ("0.29.1-rc2", 3), ("0.30", 0),
     ("v0.31.0", 0), ("0.24.0-12-gabc123", 3), ("0.32.15.1", 0)],
)  # fmt: skip
def test_a_modelfile_without_template_needs_a_new_ollama(call, run, version, code):
    exported(run, COUNTS)
    done = call(FAKE_VERSION=version)
    assert done.returncode == code, done.stderr
    assert ("0.30.0 or later; this is" in done.stderr) == (code == 3)
    assert "is taken for" not in done.stderr


@pytest.mark.parametrize("version", ["0.0.0", "", "0.0.0-dirty"])
def test_an_unknown_version_is_not_an_old_one(call, run, store, version):
    exported(run, COUNTS)
    (store / "client").write_text("0.5.7\n")
    done = call(FAKE_VERSION=version)
    assert done.returncode == 0, done.stderr
    said = f'this one says version "{version}", which is taken for that'
    assert f"this model needs Ollama 0.30.0 or later; {said}" in done.stderr
    (store / "old").touch()
    assert call(FAKE_VERSION=version).returncode == 1, "the template that it uses shows what it is"


@pytest.mark.parametrize(
    ("fault", "message"), [("broken", "llama runner process has terminated"), ("mute", "its answer is empty")]
)
def test_a_model_that_does_not_answer_fails(call, store, fault, message):
    (store / fault).touch()
    done = call()
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_an_answer_that_does_not_come_is_given_up(call, store):
    (store / "slow").touch()
    done = call(OLLAMA_ANSWER_SECONDS="1")
    assert (done.returncode, done.stdout) == (1, "")
    assert "did not finish its answer within 1 s" in done.stderr


def test_escape_codes_in_an_answer_are_shown_and_reach_no_terminal(call, store):
    (store / "answer").write_text(
        "\x1b]0;owned\x07 caf\u00e9 \u4f60\u597d \x9b31m \u202e\tend \u201cquoted\u201d\n", encoding="utf-8"
    )
    done = call()
    assert done.returncode == 0
    assert "\\x1b]0;owned? caf\u00e9 \u4f60\u597d ?31m ?\tend \u201cquoted\u201d\n" in done.stderr


def test_an_answer_that_never_ends_is_told_by_its_length_before_the_time_is_over(call, run, store):
    (store / "endless").touch()
    done = call()
    assert (done.returncode, done.stdout) == (1, "")
    assert "did not stop by itself within about 1000 tokens" in done.stderr
    assert f"the end\nhas no PARAMETER stop in {run}/Modelfile.team-my-assistant-v1, or" in done.stderr
    assert done.stderr.count("and so on") == 60, "the beginning is shown, not all of it"


def test_a_long_answer_that_ends_is_an_answer(call, store):
    (store / "answer").write_text("word " * 2000)
    assert call(OLLAMA_ANSWER_TOKENS="10").returncode == 0


@pytest.mark.parametrize("variable", ["OLLAMA_ANSWER_SECONDS", "OLLAMA_ANSWER_TOKENS"])
def test_a_limit_that_is_no_number_is_refused(call, variable):
    for value in ("five", "-1", "1.5", "0", "9999999999", "a[$(touch evil)]"):
        done = call(**{variable: value})
        assert (done.returncode, done.stdout) == (2, "")
        assert "are whole numbers from 1 to 999999" in done.stderr


def test_where_stderr_is_no_terminal_no_escape_codes_stand_in_it(call, store):
    done = call()
    lines = ["copying file sha256:0a1b 100%", "parsing GGUF", "writing manifest", "success", OURS]
    assert done.stderr.splitlines()[1:7] == ["gathering model components", *lines]
    assert "\033" not in done.stderr
    (store / "answer").write_text("A word " * 20 + "that is longer than a line")
    assert "\033" not in call().stderr, "a line is not wrapped, which is done with such codes"
    (store / "broken").touch()
    done = call()
    assert "does not answer: Error: llama runner process has terminated\n" in done.stderr
    assert "\033" not in done.stderr


def test_on_a_terminal_ollama_draws_its_progress_itself(call, store):
    ours, theirs = pty.openpty()
    drawn = []

    def read():
        # the end of what a terminal holds is an error on Linux
        with suppress(OSError):
            while part := os.read(ours, 1 << 16):
                drawn.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    done = call(stderr=theirs)
    os.close(theirs)
    reader.join()
    os.close(ours)
    assert done.returncode == 0
    assert b"\033[?2026h\033[?25l" in b"".join(drawn)


def test_an_answer_that_holds_a_stop_text_is_warned_about(call, store):
    (store / "answer").write_text("Hello.<|im_end|>\nuser: and so on\n")
    done = call()
    assert done.returncode == 0
    assert "the answer holds <|im_end|>" in done.stderr


@pytest.mark.parametrize(
    "name",
    ["../evil", "a b", "--help-me", "a;b", "名", "", "x:y:z", "a//b", "$(id)", "a\nb", "a\n", "\na", "a\rb", "a\tb"],
)
def test_a_name_that_ollama_does_not_take_is_refused_before_anything_is_written(call, run, name):
    if name:
        done = call(run, name)
    else:
        (run / "config.ini").write_text("[Model]\nNEW_MODEL_NAME = a b\n")
        done = call(run)
    assert (done.returncode, done.stdout) == (2, "")
    assert not list(run.glob("Modelfile.*"))
    # What begins as a flag is a wrong argument, told as everywhere.
    assert done.stderr.count("\n") == (3 if name.startswith("--") else 1)


@pytest.mark.parametrize("name", ["a\nTEMPLATE x.gguf", "a\rb.gguf", "\n.gguf", "a.gguf ", "a.gguf\n"])
def test_a_gguf_whose_name_a_modelfile_cannot_hold_is_refused(call, run, name):
    write_gguf(run / name, None)
    done = call(run / name, "other")
    assert (done.returncode, done.stdout) == (2, "")
    assert "a Modelfile cannot hold such a name; rename the file" in done.stderr
    assert not list(run.glob("Modelfile.*"))
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "place_of",
    ["../../x.gguf", "./../x.gguf", "sub/x.gguf", ".//x.gguf", "../finetune_20260101_120000/my-assistant.Q4_K_M.gguf"],
)
def test_from_another_place_than_beside_the_modelfile_is_refused(call, run, place_of):
    (run / "sub").mkdir()
    write_gguf((run / place_of).resolve(), None)
    write_gguf(run / "x.gguf", None)
    (run / "Modelfile").write_text(MODELFILE.replace("./my-assistant.Q4_K_M.gguf", place_of))
    done = call(run)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"FROM {place_of.removeprefix('./')} is no file beside it" in done.stderr
    assert not list(run.glob("Modelfile.*"))
    assert call(run / "x.gguf", "other").returncode == 0, "a file that is named is beside it"


def test_what_does_not_exist_is_named(call, place):
    for given, message in (("nowhere", "nowhere: no such folder"), (place / "config.ini", "neither a run's folder")):
        done = call(given)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


def test_no_run_yet_says_how_to_make_one(call, place):
    shutil.rmtree(place / "outputs")
    done = call()
    assert done.returncode == 2
    command = re.search(r"yet: (.*) makes one", done.stderr)[1]
    pasted = subprocess.run(["bash", "-c", f"printf %s {command}"], capture_output=True, text=True)
    assert pasted.stdout == str(place / "run.sh")
    assert "yet: ./run.sh makes one" in call(cwd=place).stderr


def test_without_the_link_latest_the_newest_folder_is_taken(call, place, run):
    (place / "outputs" / "latest").unlink()
    (place / "outputs" / "finetune_20250101_000000").mkdir()
    assert call("--modelfile-only").stdout == f"{run}/Modelfile.team-my-assistant-v1\n"


def test_a_folder_that_is_no_run_is_refused(call, tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    done = call(tmp_path / "x.gguf")
    assert done.returncode == 2
    assert "has no Modelfile" in done.stderr


@pytest.mark.parametrize("missing", ["my-assistant.Q4_K_M.gguf", "Modelfile", "report.json"])
def test_what_is_missing_is_made_by_the_export_or_needs_set_up(call, place, run, missing):
    (run / missing).unlink()
    done = call("--modelfile-only")
    assert (done.returncode, done.stdout) == (3, "")
    assert "/setup.sh' first" in done.stderr
    python = place / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > "{place}/asked"\ncp "{place}/kept" "$2/{missing}"\necho noise\n'
    )
    python.chmod(0o755)
    (place / "kept").write_text(MODELFILE)
    done = call("--modelfile-only")
    assert (done.returncode, done.stdout) == (0, f"{run}/Modelfile.team-my-assistant-v1\n"), done.stderr
    assert (place / "asked").read_text().splitlines() == [str(place / "training" / "export.py"), str(run)]


ADAPTED = f'FROM base:1b\nADAPTER ./my-assistant.adapter.gguf\nTEMPLATE """{TEMPLATE}"""\nPARAMETER stop "<|im_end|>"\n'


@pytest.fixture
def adapted(place, run):
    """A stand-in for the package: it notes what it was asked for, and writes the adapter and its Modelfile."""
    (run / "adapter").mkdir()
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"trained")
    python = place / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (place / "kept").write_text(ADAPTED)
    python.write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" >> "{place}/asked"\ncp "{place}/kept" "$2/Modelfile.$6"\n'
        f'echo GGUF > "$2/my-assistant.adapter.gguf"\necho noise\n'
    )
    python.chmod(0o755)
    return place / "asked"


def test_with_adapter_only_the_adapter_is_put_on_a_model_that_ollama_has(call, run, store, adapted, place):
    (store / "models").write_text("base:1b\n")
    done = call("--adapter", "base:1b", run, "mine")
    assert (done.returncode, done.stdout) == (0, "mine\n"), done.stderr
    asked = [str(place / "training" / "export.py"), str(run), "--adapter", "base:1b", "--name", "mine"]
    assert adapted.read_text().splitlines() == asked
    assert calls(store) == [
        *("list", "show base:1b", f"create mine -f {run}/Modelfile.mine"),
        *(
            "show --template mine",
            "show --template base:1b",
            "show --modelfile mine",
            "run --nowordwrap mine Who are you?",
        ),
    ]
    assert (store / "Modelfile").read_text() == ADAPTED
    assert call("--adapter", "base:1b", run, "mine").returncode == 0
    assert adapted.read_text().splitlines() == asked, "the second time all is in place"
    os.utime(run / "my-assistant.adapter.gguf", (1, 1))  # older than what was trained
    assert call("--adapter", "base:1b", run, "mine").returncode == 0
    assert adapted.read_text().splitlines() == asked * 2


def test_an_adapter_for_a_model_that_ollama_has_not_says_how_to_get_it(call, run, adapted):
    done = call("--adapter", "base:1b", run, "mine")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Ollama has no model base:1b: ollama pull base:1b, then:  ollama create mine -f" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--adapter",), "--adapter: name the model that Ollama has"),
        (("--modelfile",), "wrong arguments\n  --modelfile is not a flag\n"),
        (("one", "name", "more"), "wrong arguments\n  too many arguments, from more on\n"),
        (("--adapter", "a b"), "a b is no name for a model"),
        (("--adapter", "team/my-assistant:v1"), "is the model that the adapter is for; give the new one another NAME"),
        (("--adapter", "registry.ollama.ai/Team/my-assistant:v1"), "is the model that the adapter is for"),
    ],
)
def test_a_base_that_cannot_be_is_refused(call, run, arguments, said):
    done = call(*arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert not list(run.glob("Modelfile.*"))


def test_an_adapter_of_what_is_no_run_and_one_without_packages_are_refused(call, run):
    done = call("--adapter", "base:1b", run / "my-assistant.Q4_K_M.gguf")
    assert (done.returncode, done.stdout) == (2, "")
    assert "--adapter is for a run's folder" in done.stderr
    done = call("--adapter", "base:1b", run)
    assert (done.returncode, done.stdout) == (3, "")
    assert "/setup.sh' first" in done.stderr


def test_a_failed_export_passes_its_exit_code_on(call, place, run):
    (run / "Modelfile").unlink()
    python = place / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text("#!/bin/sh\necho the export says why >&2\nexit 1\n")
    python.chmod(0o755)
    done = call()
    assert (done.returncode, done.stdout) == (1, "")
    assert "the export says why" in done.stderr


def test_a_run_copied_to_another_folder_still_exports(call, run, tmp_path, store):
    copy = tmp_path / "mac copy"
    copy.mkdir()
    for name in ("Modelfile", "my-assistant.Q4_K_M.gguf"):
        shutil.copy(run / name, copy)
    done = call(copy)
    assert (done.returncode, done.stdout) == (0, "my-assistant\n"), done.stderr


def test_through_a_link_and_with_streams_closed_it_still_works(place, tmp_path, run):
    link = tmp_path / "link.sh"
    link.symlink_to(os.path.relpath(place / "export_ollama.sh", tmp_path))
    subprocess.run(
        ["bash", "-c", f'"{link}" --modelfile-only <&- >&- 2>&-'], check=True, env={"PATH": os.environ["PATH"]}
    )
    assert (run / "Modelfile.team-my-assistant-v1").read_text() == MODELFILE


def test_help_is_on_stdout(call):
    done = call("--help")
    assert done.returncode == 0
    assert "[--adapter BASE] [--switch] [RUN | RUN/merged | FILE.gguf] [NAME]" in done.stdout
    assert call("--nonsense").returncode == 2


MODELFILES = [
    MODELFILE,
    MODELFILE.replace("\n", "\r\n"),
    'FROM x.gguf  \nsystem """A line:\nTEMPLATE no\nFROM no"""\nTemplate """yes\n"""\n',
    '# "a comment\nFROM "x y.gguf"\nSYSTEM "one\nTEMPLATE two"\nPARAMETER stop "\nTEMPLATE three"\n',
    "FROM x\nTEMPLATE {{ .Prompt }}  \n",
    'FROM x\nTEMPLATE """a "quoted" \n\n word""" \nPARAMETER stop """"\n""" \n',
    'FROM x\nTEMPLATE ""\n',
]


def functions(*names: str) -> str:
    """Functions of the script, to be called by themselves."""
    code = (ROOT / "export_ollama.sh").read_text()
    return "\n".join(
        re.search(rf"^{name}\(\) \{{(?:.*?\n\}}|[^\n]*\}})$", code, re.DOTALL | re.MULTILINE)[0] for name in names
    )


def value_of(command: str, text: str) -> tuple[int, str]:
    """What the script's reader finds in a Modelfile: its exit code and the value."""
    command = ["bash", "-c", f'{functions("value_of")}\nvalue_of "$1"', "-", command]
    done = subprocess.run(command, input=text.encode(), capture_output=True)
    return done.returncode, done.stdout.decode().rstrip("\n")


@pytest.mark.parametrize("text", MODELFILES)
def test_the_scripts_reader_of_modelfiles_agrees_with_the_package(tmp_path, text):
    file = tmp_path / "Modelfile"
    file.write_text(text, newline="")
    held = dict(modelfile_syntax.read(file))
    for command in ("from", "template", "renderer"):
        wanted = held.get(command, "").replace("\r", "").rstrip("\n")
        assert value_of(command, text) == (0 if command in held else 1, wanted), command


def test_a_line_in_a_message_is_no_command_to_the_scripts_reader():
    text = 'FROM x\nMESSAGE user """a\nTEMPLATE b"""\n'
    assert value_of("template", text) == (1, "")
    assert value_of("template", text + "TEMPLATE c\n") == (0, "c")


def setting(file: Path, section: str, key: str) -> str:
    """What the script reads in a settings file."""
    command = ["bash", "-c", f'{functions("setting")}\nsetting "$@"', "-", str(file), section, key]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def ini_value(file: Path, section: str, key: str) -> str:
    """What the package reads there."""
    return {(entry.section, entry.key): entry.value for entry in ini_file.read(file).entries}.get((section, key), "")


VALUES = [
    "outputs",
    "a b",
    "a # comment",
    "a;b#c ; comment",
    '"quoted # text"',
    '"a \\\\ b \\" c"  # more',
    "  ",
    "x=y",
    "中文",
]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("value", VALUES)
def test_the_scripts_reader_of_settings_agrees_with_the_package(tmp_path, value, end):
    lines = [
        "\ufeff# KEY = comment",
        "[Other]",
        "KEY = other",
        "; x",
        " [ Training ] # y",
        "KEYS = no",
        f"KEY = {value}",
        "KEY2 = z",
    ]
    file = tmp_path / "config.ini"
    file.write_bytes(end.join(lines).encode())
    assert setting(file, "Training", "KEY") == ini_value(file, "Training", "KEY")


def test_the_scripts_reader_of_settings_agrees_with_the_package_on_whole_files(tmp_path):
    """The file that comes with this project, and what a run writes of its settings: every key of every section."""
    written = tmp_path / "config.ini"
    values = {"OUTPUT_DIR": 'a "folder" # 训练; 1', "NEW_MODEL_NAME": "team/m:v1", "SYSTEM_PROMPT": " [Model] = x "}
    written.write_text(a_settings(tmp_path, **values).to_ini())
    for file in (ROOT / "config.ini", written):
        for item in table.TABLE.values():
            assert setting(file, item.section, item.key) == ini_value(file, item.section, item.key), item.name


NAMES = [
    *(host + namespace + model + tag for host in ("", "h.x:5000/", "-h/", "h_/") for namespace in ("", "n/", "n.n/", "_n-/")
      for model in ("m", "", "m.m", "-m", ".m", "_m", "m m", "模型", "a" * 80, "a" * 81) for tag in ("", ":", ":t.1", ":-t", ":t:u")),
    *("m\n", "m\nn", "\tm", "m\r", "a/b/c/d", "../m", "~/m", "--m", "m/", "$(m)", "m\\", 'm"', "h" * 350 + "/n/m"),
]  # fmt: skip


def test_the_three_places_that_know_ollamas_rule_for_names_agree():
    """settings/names.py tells all that is wrong, ollama/modelfile_syntax.py guards a file, the script runs without both."""
    script = (
        functions("without_controls", "say", "fail", "shown", "check_name")
        + """
        while IFS= read -r -d "" name; do
            if (check_name "$name") 2>/dev/null; then echo taken; else echo refused; fi
        done"""
    )
    given = "".join(f"{name}\0" for name in NAMES).encode()
    done = subprocess.run(["bash", "-c", script], input=given, capture_output=True, check=True)
    for name, told in zip(NAMES, done.stdout.decode().split(), strict=True):
        try:
            names.check_model_name(name)
            taken = True
        except ValueError:
            taken = False
        assert (told == "taken", not modelfile_syntax.model_name_problems(name)) == (taken, taken), repr(name)


def test_the_script_keeps_to_what_bash_3_2_knows():
    """macOS ships 3.2. It was run with a real one; this keeps later changes in its bounds."""
    code = re.sub(r"(?m)^\s*#.*$", "", (ROOT / "export_ollama.sh").read_text())
    newer = r"declare -[Agn]|local -[An]|mapfile|readarray|\$\{\w+(,,|\^\^|@)|&>>|\|&|\bcoproc\b|printf '%\(|\$\{\w+\[-|;;&|;&|wait -n|\$EPOCH"
    assert not re.search(newer, code)
    assert not re.search(r"\breadlink -f|\brealpath\b|\bmktemp --|\bsed -i|\bgrep -\w*P|\bsort -V", code), (
        "not on a Mac"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rollback"], "--rollback: name the model to go back with"),
        (["--rollback", "a", "b"], "--rollback NAME stands alone"),
        (["--switch", "--rollback", "a"], "--rollback NAME stands alone"),
        (["--switch", "--modelfile-only"], "--switch and --modelfile-only exclude each other"),
    ],
)
def test_switch_and_rollback_are_told_how_they_are_typed(call, words, said):
    done = call(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr


@pytest.mark.parametrize("named", ["outputs/finetune_2", "mine.Q4_K_M.gguf"])
def test_a_mistyped_run_is_not_taken_for_the_models_name(call, place, named):
    done = call("--switch", named, cwd=place)
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        f"{named}: no such folder or file. A model of that name: ./export_ollama.sh --switch RUN {named}" in done.stderr
    )
    assert not list(place.rglob("Modelfile.*"))


def content(store):
    """What each name stands for in the fake Ollama: what it was copied from, or itself."""
    held = dict(line.split() for line in (store / "content").read_text().splitlines())
    return {name: held.get(name, name) for name in (store / "models").read_text().split()}


def test_without_the_packages_a_switch_is_refused_and_the_way_back_lets_the_two_change_places(call, run, store):
    done = call("--switch", run, "mine")
    assert (done.returncode, done.stdout) == (3, "")
    assert "--switch needs the packages" in done.stderr
    done = call("--rollback", "team/mine:v1")
    assert done.returncode == 2
    assert "Ollama has no team/mine-previous:v1: --switch keeps one" in done.stderr
    (store / "models").write_text("team/mine-previous:v1\nteam/mine:v1\n")
    for now, before in (("mine-previous", "mine"), ("mine", "mine-previous")):
        done = call("--rollback", "team/mine:v1")
        assert (done.returncode, done.stdout) == (0, "team/mine:v1\n"), done.stderr
        assert "deleted 'team/mine-next:v1'" in done.stderr and "\033" not in done.stderr
        assert content(store) == {"team/mine:v1": f"team/{now}:v1", "team/mine-previous:v1": f"team/{before}:v1"}


def test_the_way_back_without_the_packages_loses_no_model(call, store):
    (store / "models").write_text("mine\nmine-previous\n")
    (store / "down").touch()
    done = call("--rollback", "mine")
    assert (done.returncode, done.stdout) == (3, "")
    assert "Ollama does not answer (Error: could not connect to ollama server)" in done.stderr
    (store / "down").unlink()
    (store / "full").write_text("mine-previous")
    done = call("--rollback", "mine")
    assert (done.returncode, done.stdout) == (1, "")
    assert (
        "ollama cp mine-next mine-previous failed (above); what mine stood for is called mine-next now" in done.stderr
    )
    assert content(store) == {"mine": "mine-previous", "mine-previous": "mine-previous", "mine-next": "mine"}
    done = call("--rollback", "mine")
    assert (done.returncode, done.stdout) == (2, "")
    assert "(ollama cp mine-next mine-previous keeps it). Where it may go:  ollama rm mine-next" in done.stderr


@pytest.mark.parametrize("name", ["mine", "a/mine:v1", "h:1/a/mine", "m" * 80, f"a/{'m' * 75}:v"])
@pytest.mark.parametrize("what", ["next", "previous"])
def test_the_script_and_the_package_cut_a_name_alike(name, what):
    done = subprocess.run(
        ["bash", "-c", functions("beside") + '\nbeside "$1" "$2"', "bash", name, what], capture_output=True, check=True
    )
    assert done.stdout.decode() == server.beside(name, what)
