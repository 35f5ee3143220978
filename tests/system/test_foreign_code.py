"""Code that comes with a model runs with TRUST_REMOTE_CODE = true, and else nowhere (training/system/foreign_code.py).

The code here is harmless: where it runs, it writes the name of its program into a file.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import small
from tests.support.folders import folder
from tests.support.hubs import Hub
from tests.support.paths import ROOT
from tests.support.programs import Ended, finetune, forked
from tests.support.tiny import write_tiny_config
from training.base_model import hub
from training.errors import RunError
from training.system import foreign_code
from training.system.foreign_code import Refused
from training.to_gguf import conversion, trial_model

# For a whole run, which needs no real vocabulary; what the converter asks of a tokenizer is asked of a real one.
small_model = small.tiny_model

CODE = """
import sys
from pathlib import Path
import transformers
with Path({mark!r}).open("a") as file:
    file.write(Path(sys.argv[0]).name + "\\n")
class Config(transformers.LlamaConfig):
    pass
class Tokenizer(transformers.PreTrainedTokenizerFast):
    kmers, dna_token_to_id = [], {{}}
class Model(transformers.LlamaForCausalLM):
    config_class = Config
"""
OWN = {
    "config.json": {"AutoConfig": "tokenizer_x.Config", "AutoModelForCausalLM": "tokenizer_x.Model"},
    "tokenizer_config.json": {"AutoTokenizer": [None, "tokenizer_x.Tokenizer"]},
}


def change(file: Path, **values: object) -> None:
    """Put values into a JSON file."""
    file.write_text(json.dumps(json.loads(file.read_text("utf-8")) | values), encoding="utf-8")


def plant(model: Path, mark: Path, tokenizer: bool = False) -> Path:
    """Give a model folder code of its own, which transformers would run in place of its own classes."""
    (model / "tokenizer_x.py").write_text(CODE.format(mark=str(mark)))
    change(model / "config.json", auto_map=OWN["config.json"])
    if tokenizer:
        change(model / "tokenizer_config.json", auto_map=OWN["tokenizer_config.json"])
    return model


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    """The file that the code leaves."""
    return tmp_path / "code-has-run"


@pytest.fixture(autouse=True)
def nothing_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing was trusted yet."""
    monkeypatch.delenv(foreign_code.SWITCH, raising=False)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What transformers copies goes into the test's own folder. A program that is told so begins in a Python of its own."""
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture
def hostile(tiny_model: Path, tmp_path: Path, mark: Path) -> Path:
    """The tiny model with code of its own, and a tokenizer class for which llama.cpp's converter runs it."""
    model = plant(shutil.copytree(tiny_model, tmp_path / "hostile"), mark)
    change(model / "tokenizer_config.json", tokenizer_class="HybridDNATokenizer")
    return model


# ---- without a model -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "place",
    ["modules/transformers_modules/m/x.py", "hub/models--a--b/snapshots/c/x.py", "h/kernels--a/snapshots/c/x.py"],
)
def test_python_executes_no_file_that_lies_where_downloaded_code_lies(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    foreign_code.keep_out()
    code = compile("ran = True", str(tmp_path / place), "exec")
    said: dict[str, object] = {}
    with pytest.raises(Refused, match="x.py cannot be loaded without running Python code.*TRUST_REMOTE"):
        exec(code, said)
    assert "ran" not in said
    monkeypatch.setenv(foreign_code.SWITCH, "1")
    exec(code, said)
    assert said["ran"]


def test_the_code_of_a_folder_is_named_in_one_line(tmp_path: Path) -> None:
    model = folder(tmp_path / "m", auto_map={"AutoConfig": "a--b.C", "AutoTokenizer": [None, "b.T"]})
    assert foreign_code.brought(model) == ["a--b.C", "b.T"]
    for name in "wxyz":
        (model / f"{name}.py").write_text("")
    assert foreign_code.ignored("org/m", foreign_code.brought(model)) == (
        "org/m comes with Python code of its own (w.py, x.py, y.py and 1 more), which is not run: TRUST_REMOTE_CODE = false"
    )
    assert foreign_code.brought(folder(tmp_path / "plain")) == []


@pytest.mark.parametrize("wrong", ["[]", "{", '{"auto_map": 1}', '{"auto_map": {"AutoConfig": {}}}', "[" * 100_000])
def test_a_file_that_names_no_code_in_the_usual_way_names_none(wrong: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer_config.json").write_text(wrong)
    assert foreign_code.brought(tmp_path) == []


def test_copies_do_not_name_code_unless_it_is_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = {"model_type": "llama", "hidden_size": 2048, "auto_map": {"AutoConfig": "x.Y"}}
    assert "auto_map" not in trial_model.shrunk(config)
    monkeypatch.setenv(foreign_code.SWITCH, "1")
    assert trial_model.shrunk(config)["auto_map"] == {"AutoConfig": "x.Y"}


def test_the_hub_is_asked_for_python_files_only_where_they_may_run() -> None:
    from huggingface_hub.utils import filter_repo_objects

    names = ["config.json", "tokenizer_x.py", "modeling.py"]
    for trusted, found in ((False, names[:1]), (True, names)):
        allowed, ignored = hub._patterns(trusted)
        assert list(filter_repo_objects(names, allow_patterns=allowed, ignore_patterns=ignored)) == found


def test_every_program_of_ours_that_may_load_transformers_has_the_door() -> None:
    programs = {
        file.relative_to(ROOT / "training").as_posix(): file.read_text("utf-8")
        for file in (ROOT / "training").rglob("*.py")
        if 'if __name__ == "__main__":' in file.read_text("utf-8")
    }
    # A job of the export shuts the door, or opens it, as the run's own settings say.
    without = {name for name, text in programs.items() if not re.search(r"foreign_code\.|Job\.of_run", text)}
    # What setup.sh starts looks at packages only, and never at a model.
    without -= {name for name in without if name.startswith("system/")}
    # Another name for finetune.py, which shuts the door itself.
    without -= {"train_lora.py"}
    assert without == {"create_sample_data.py", "llama/worker.py", "prepare_data.py", "settings/command_line.py"}
    assert not any("transformers" in programs[name] for name in without - {"llama/worker.py"})


DOOR = """
import sys
from pathlib import Path
from training.system import foreign_code
from training.system.foreign_code import Refused
if sys.argv[2] == "late":
    import transformers.generation.utils, transformers.models.auto.auto_factory
foreign_code.keep_out()
import transformers
from transformers import dynamic_module_utils as dynamic, pipelines
from transformers.generation.utils import GenerationMixin
from transformers.models.auto import auto_factory
model = sys.argv[1]
for given in (True, None, False):
    print(auto_factory.resolve_trust_remote_code(given, model, True, True), end=" ")
for attempt in (
    lambda: auto_factory.resolve_trust_remote_code(None, model, False, True),
    lambda: auto_factory.resolve_trust_remote_code(True, model, False, True),
    lambda: dynamic.get_class_from_dynamic_module("tokenizer_x.Config", model),
    lambda: pipelines.get_class_from_dynamic_module("tokenizer_x.Config", model),
    lambda: GenerationMixin().load_custom_generate(model, trust_remote_code=True),
    lambda: transformers.AutoConfig.from_pretrained(model, trust_remote_code=True).model_type,
):
    try:
        print(attempt(), end=" ")
    except Refused:
        print("refused", end=" ")
"""


@pytest.mark.tiny
@pytest.mark.usefixtures("place")
@pytest.mark.parametrize("when", ["early", "late"])
def test_transformers_runs_no_code_whichever_way_it_is_asked(when: str, tmp_path: Path, mark: Path) -> None:
    model = plant(folder(tmp_path / "m"), mark)
    (model / "custom_generate").mkdir()
    shutil.copy(model / "tokenizer_x.py", model / "custom_generate" / "generate.py")
    done = subprocess.run(
        [sys.executable, "-c", DOOR, model, when], cwd=ROOT, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.split() == ["False"] * 3 + ["refused"] * 5 + ["llama"], done.stderr
    assert not mark.exists()


# ---- the converter ---------------------------------------------------------------------------------------------------


def converted(model: Path) -> None:
    """Let the converter run to its end, whatever it thinks of the model."""
    try:
        conversion.to_gguf(model, model / "out.gguf")
    except RunError as error:
        assert "Refused" not in str(error)


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "Glm4ForCausalLM", "LLaDAModelLM", "DreamModel"])
def test_the_converter_runs_no_code_of_a_folder_for_any_architecture(
    architecture: str, tiny_model: Path, tmp_path: Path, mark: Path
) -> None:
    model = tmp_path / "model"
    if architecture == "Glm4ForCausalLM":
        config = json.loads((tiny_model / "config.json").read_text("utf-8"))
        trial_model.make(model, config | {"model_type": "glm4", "pad_token_id": None}, tiny_model)
    else:
        shutil.copytree(tiny_model, model)
        change(model / "config.json", architectures=[architecture])  # a model of Qwen2's kind, for the last
    plant(model, mark)
    if architecture == "LlamaForCausalLM":
        change(model / "tokenizer_config.json", tokenizer_class="HybridDNATokenizer")
    converted(model)
    assert not mark.exists()


# ---- the programs ----------------------------------------------------------------------------------------------------

# What begins in a Python of its own (`place`) shows that the program itself shuts the door; the others are the same program,
# and begin in a fork of a process that has imported torch behind that door.
LINE = "comes with Python code of its own (tokenizer_x.py), which is not run: TRUST_REMOTE_CODE = false"


@pytest.mark.tiny
@pytest.mark.usefixtures("place")
def test_a_check_runs_no_code_of_a_folder_and_says_so_once(hostile: Path, tmp_path: Path, mark: Path) -> None:
    ended = finetune("--check", "--config", write_tiny_config(tmp_path, hostile))
    assert not mark.exists()
    assert ended.code == 0, ended.stderr
    assert ended.stderr.count(f"{hostile} {LINE}") == 1


@pytest.mark.tiny
@pytest.mark.usefixtures("place")
def test_a_check_of_a_trusted_model_runs_its_code_also_in_the_converter(
    hostile: Path, tmp_path: Path, mark: Path
) -> None:
    plant(hostile, mark, tokenizer=True)
    config = write_tiny_config(tmp_path, hostile)
    ended = finetune("--check", "--config", config, "--set", "Model.TRUST_REMOTE_CODE=true")
    assert ended.code == 0, ended.stderr
    assert set(mark.read_text().split()) >= {"finetune.py", "convert_hf_to_gguf.py"}
    assert "which is not run" not in ended.stderr


@pytest.mark.tiny
def test_a_tokenizer_that_is_nothing_but_code_is_refused_with_what_would_run_it(
    hostile: Path, tmp_path: Path, mark: Path
) -> None:
    plant(hostile, mark, tokenizer=True)
    ended = finetune("--check", "--config", write_tiny_config(tmp_path, hostile))
    assert (ended.code, ended.stdout) == (2, "")
    said = f"{hostile} cannot be loaded without running Python code that comes with it; TRUST_REMOTE_CODE = true would"
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not mark.exists()


@pytest.fixture
def serving(hostile: Path) -> Iterator[Hub]:
    """A Hub on loopback with the hostile model."""
    running = Hub({"org/bad": {file.name: file.read_bytes() for file in hostile.iterdir()}})
    yield running
    running.server.shutdown()


@pytest.mark.tiny
@pytest.mark.usefixtures("place")
def test_no_code_of_a_model_on_the_hub_is_fetched_or_run(serving: Hub, tmp_path: Path, mark: Path) -> None:
    config = write_tiny_config(tmp_path, Path("org/bad"))
    home = tmp_path / "home"
    ended = finetune(
        "--check", "--config", config, HF_HOME=str(home), HF_ENDPOINT=serving.address, HF_HUB_OFFLINE="0",
        HF_HUB_DISABLE_TELEMETRY="1", NO_PROXY="127.0.0.1",
    )  # fmt: skip
    assert not mark.exists()
    assert ended.code == 0, ended.stderr
    assert (
        "org/bad comes with Python code of its own (tokenizer_x.Config, tokenizer_x.Model), which is not"
        in ended.stderr
    )
    assert (next(home.glob("hub/models--org--bad/snapshots/*")) / "config.json").exists()
    assert not list(home.rglob("*.py"))
    assert not any("tokenizer_x.py" in request for request in serving.requests)


def to_gguf(*arguments: str | Path) -> Ended:
    return forked(ROOT / "training" / "convert_to_gguf.py", *arguments)


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_convert_to_gguf_runs_no_code_until_its_switch_says_so(hostile: Path, tmp_path: Path, mark: Path) -> None:
    ended = to_gguf("--model-path", hostile, "--quantization", "f16")
    assert not mark.exists()
    assert f"{hostile} {LINE}" in ended.stderr
    plant(hostile, mark, tokenizer=True)
    ended = to_gguf("--model-path", hostile, "--quantization", "f16", "--trust-remote-code")
    assert "which is not run" not in ended.stderr
    assert "convert_hf_to_gguf.py" in mark.read_text()


@pytest.mark.tiny
def test_a_run_puts_no_code_no_private_file_and_nothing_unasked_into_what_it_makes(
    small_model: Path, tmp_path: Path, mark: Path
) -> None:
    secret = tmp_path / "home" / ".ssh" / "id_ed25519"
    secret.parent.mkdir(parents=True)
    secret.write_text("-----BEGIN OPENSSH PRIVATE KEY-----")
    secret.chmod(0o600)
    base = plant(shutil.copytree(small_model, tmp_path / "base"), mark)
    (base / "LICENSE").symlink_to(secret)
    (base / "NOTICE").write_text("made by others")
    (base / "notes.txt").write_text("found here")
    ended = finetune("--config", write_tiny_config(tmp_path, base), "--set", "Quantization.KEEP_F16=true")
    assert ended.code == 0, ended.stderr
    assert not mark.exists()
    merged = ended.run / "merged"
    assert {file.name for file in merged.iterdir()} == {file.name for file in small_model.iterdir()} | {
        "NOTICE",
        "README.md",
    }
    assert "auto_map" not in json.loads((merged / "config.json").read_text("utf-8"))
    said = "the merged model takes from its base what a model needs, and not: LICENSE, notes.txt, tokenizer_x.py"
    assert ended.stderr.count(said) == 1
    made = [file.read_bytes() for file in ended.run.rglob("*") if file.is_file()]
    assert not any(b"OPENSSH PRIVATE KEY" in content for content in [*made, ended.stderr.encode()])
