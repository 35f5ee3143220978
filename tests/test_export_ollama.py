"""export_ollama.sh, against a fake Ollama (tests/fake_ollama.sh): the real one needs a server, which is not there."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from training import ini

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[1]
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

    def call(*arguments, ollama=True, shell="bash", cwd=None, **environment):
        programs = tmp_path / "programs"
        programs.mkdir(exist_ok=True)
        (programs / "ollama").unlink(missing_ok=True)
        if ollama:
            (programs / "ollama").symlink_to(FAKE)
        env = {"PATH": f"{programs}:{os.environ['PATH']}", "FAKE_OLLAMA": str(store), **environment}
        script = [shell, str(place / "export_ollama.sh"), *map(str, arguments)]
        return subprocess.run(script, capture_output=True, text=True, env=env, cwd=cwd or tmp_path, timeout=60)

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
        "run team/my-assistant:v1 Who are you?",
    ]
    assert "I am a fine-tuned assistant." in done.stderr
    assert modelfile.read_text() == MODELFILE


def test_a_run_its_merged_folder_and_a_gguf_file_all_name_the_run(call, run, tmp_path):
    (run / "merged").mkdir()
    relative = os.path.relpath(run, tmp_path)
    for given in (run, f"{run}/", run / "merged", run / "my-assistant.Q4_K_M.gguf", relative, f"{relative}/merged/"):
        done = call("--modelfile-only", given)
        assert (done.returncode, done.stdout) == (0, f"{run}/Modelfile.team-my-assistant-v1\n"), (given, done.stderr)


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


def test_a_template_that_ollama_replaced_is_found_out(call, store):
    (store / "template").write_text("{{ .Prompt }}")
    done = call()
    assert (done.returncode, done.stdout) == (1, "")
    assert "another template" in done.stderr


@pytest.mark.parametrize(
    ("version", "code"), [("0.29.9", 3), ("0.30.0", 0), ("0.100.0", 0), ("1.0.1", 0), ("0.5.7", 3)]
)
def test_a_modelfile_without_template_needs_a_new_ollama(call, run, version, code):
    (run / "Modelfile").write_text("FROM ./my-assistant.Q4_K_M.gguf\n")
    done = call(FAKE_VERSION=version)
    assert done.returncode == code, done.stderr
    assert ("0.30.0 or later" in done.stderr) == (code == 3)


@pytest.mark.parametrize(
    ("fault", "message"), [("broken", "llama runner process has terminated"), ("mute", "its answer is empty")]
)
def test_a_model_that_does_not_answer_fails(call, store, fault, message):
    (store / fault).touch()
    done = call()
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr


def test_an_answer_that_never_ends_is_given_up(call, store):
    (store / "endless").touch()
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


def test_an_answer_that_holds_a_stop_text_is_warned_about(call, store):
    (store / "answer").write_text("Hello.<|im_end|>\nuser: and so on\n")
    done = call()
    assert done.returncode == 0
    assert "the answer holds <|im_end|>" in done.stderr


@pytest.mark.parametrize("name", ["../evil", "a b", "--help-me", "a;b", "名", "", "x:y:z", "a//b", "$(id)"])
def test_a_name_that_ollama_does_not_take_is_refused_before_anything_is_written(call, run, name):
    if name:
        done = call(run, name)
    else:
        (run / "config.ini").write_text("[Model]\nNEW_MODEL_NAME = a b\n")
        done = call(run)
    assert (done.returncode, done.stdout) == (2, "")
    assert not list(run.glob("Modelfile.*"))


def test_what_does_not_exist_is_named(call, place):
    for given, message in (("nowhere", "nowhere: no such folder"), (place / "config.ini", "neither a run's folder")):
        done = call(given)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr


def test_no_run_yet_says_how_to_make_one(call, place):
    shutil.rmtree(place / "outputs")
    done = call()
    assert done.returncode == 2
    assert "./run.sh" in done.stderr


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
    assert "./setup.sh" in done.stderr
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
        *("show --template mine", "run mine Who are you?"),
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
        (("--adapter", "a b"), "a b is no name for a model"),
        (("--adapter", "team/my-assistant:v1"), "is the model that the adapter is for; give the new one another NAME"),
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
    assert "./setup.sh" in done.stderr


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
    assert "[--adapter BASE] [RUN | RUN/merged | FILE.gguf] [NAME]" in done.stdout
    assert call("--nonsense").returncode == 2


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
    function = re.search(r"^setting\(\) \{.*?^\}", (ROOT / "export_ollama.sh").read_text(), re.DOTALL | re.MULTILINE)[0]
    script = f'{function}\nsetting "$1" Training KEY'
    said = subprocess.run(["bash", "-c", script, "-", str(file)], capture_output=True, text=True, check=True).stdout
    (wanted,) = (e.value for e in ini.read(file).entries if (e.section, e.key) == ("Training", "KEY"))
    assert said == wanted


def test_the_script_keeps_to_what_bash_3_2_knows():
    """macOS ships 3.2. It was run with a real one; this keeps later changes in its bounds."""
    code = re.sub(r"(?m)^\s*#.*$", "", (ROOT / "export_ollama.sh").read_text())
    newer = r"declare -[Agn]|local -[An]|mapfile|readarray|\$\{\w+(,,|\^\^|@)|&>>|\|&|\bcoproc\b|printf '%\(|\$\{\w+\[-|;;&|;&|wait -n|\$EPOCH"
    assert not re.search(newer, code)
    assert not re.search(r"\breadlink -f|\brealpath\b|\bmktemp --|\bsed -i|\bgrep -\w*P|\bsort -V", code), (
        "not on a Mac"
    )
