"""Unsloth without a card: a whole run on its CPU backend, and each of our calls against its GPU classes.

Its two wheels go into a virtual environment of their own over the project's (.cache/unsloth): an upgrade of the pins
that breaks a call fails here. What no test here can see is a card doing the work.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.environments import python_with
from tests.support.paths import ROOT
from tests.support.programs import Ended, finetune
from tests.support.ranks import TWO, program
from tests.support.settings import a_settings
from tests.support.tiny import write_tiny_config
from training import settings
from training.errors import MachineError, UserError
from training.system import events
from training.train import engine

REQUIREMENTS = ROOT / "requirements"
# Defaults that Unsloth's SFTConfig has otherwise than TRL's and that we leave to it: none of them changes a loss.
LEFT = {
    "torch_empty_cache_steps",  # how often the allocator's cache is emptied
    "eval_accumulation_steps",  # when predictions go to the CPU: there are none, prediction_loss_only is set
    "include_num_input_tokens_seen",  # written "no" by the one and False by the other
}


@pytest.fixture(scope="session")
def unsloth_python() -> Path:
    """The Python of an environment with the project's packages, Unsloth's wheels and what its GPU part imports besides."""
    return python_with("unsloth", [REQUIREMENTS / "gpu-no-deps.txt", REQUIREMENTS / "test-unsloth.txt"])


@pytest.fixture(scope="session")
def through_unsloth(unsloth_python, tmp_path_factory, tiny_model) -> tuple[Ended, Path]:
    """A whole run on the CPU backend, and the folder in which it was started."""
    folder = tmp_path_factory.mktemp("unsloth")
    config = write_tiny_config(folder, tiny_model)
    ended = finetune("--config", config, "--set", "Hardware.ENGINE=unsloth", cwd=folder, python=unsloth_python)
    assert ended.code == 0, ended.stderr
    return ended, folder


def losses(run: Path, event: str = "step") -> list[float]:
    return [e["loss"] for e in events.read(run / "events.jsonl") if e["event"] == event]


# ---- on its CPU backend --------------------------------------------------------------------------------------------


@pytest.mark.tiny
def test_a_whole_run_through_unsloth_gives_the_losses_of_transformers_and_a_checked_model(through_unsloth, undisturbed):
    ended, folder = through_unsloth
    report = json.loads((ended.run / "report.json").read_text(encoding="utf-8"))
    assert all(check["passed"] for check in report["checks"]) and len(report["checks"]) >= 6
    assert (ended.run / "adapter" / "adapter_model.safetensors").is_file()
    ours, theirs = losses(undisturbed), losses(ended.run)
    assert len(theirs) == 6 and theirs[-1] < theirs[0]
    # bf16 keeps 8 bits, so one rounding is 0.4 %; other attention and other sums before each update
    assert theirs == pytest.approx(ours, rel=4e-3)
    assert ended.stderr.count("Unsloth 20") == 1, "the export's own process does not import it"
    assert "should be imported before" not in ended.stderr
    left = {path.name for path in folder.iterdir()}
    assert left == {"config.ini", "rows.jsonl", "outputs"}, "nothing is written where the caller stands"


@pytest.mark.tiny
def test_two_processes_through_unsloth_have_the_losses_of_one_with_as_many_rows_a_step(
    unsloth_python, through_unsloth, tmp_path, tiny_model
):
    config = write_tiny_config(tmp_path, tiny_model)
    command = program("", "--config", config, *TWO, "--set=Hardware.ENGINE=unsloth")
    done = subprocess.run(
        [unsloth_python, *command[1:]],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=600,
        cwd=tmp_path,
    )
    # It ends when it is trained.
    assert done.returncode == 1 and "enough" in done.stderr and "6 steps of 4 rows in 2 processes" in done.stderr, (
        done.stderr
    )
    run, one = Path(done.stdout.strip()), through_unsloth[0].run
    assert len(losses(run)) == 6 and losses(run) == pytest.approx(losses(one), rel=1e-3)
    assert losses(run, "evaluation") == pytest.approx(losses(one, "evaluation"), rel=1e-3)
    # Both processes had it.
    log = (run / "finetune.log").read_text(encoding="utf-8")
    assert done.stderr.count("Unsloth 20") == 1 and re.search(r"process 1: .*Unsloth 20", log), log


BATCHES = """
import hashlib, json, sys
from pathlib import Path
_, root, config, model, rows, out = sys.argv
sys.path.insert(0, root)
from types import SimpleNamespace
from training import settings
from training.plan import choices
from training.system import this_machine
from training.train import Watch
from training.train import arguments
from training.train import engine
from training.train import hooks
given = choices.decide(settings.load(Path(config)), this_machine.inspect())
engine.start(given)
import datasets, torch
loaded = engine.load(SimpleNamespace(path=Path(model), name="tiny"), given, longest=24)
data = datasets.Dataset.from_list(json.loads(rows))
watch = Watch(folder=Path(out), fingerprint={}, keep=1)
one = hooks.hooked(loaded.trainer_class, watch)(
    model=loaded.model, args=loaded.config_class(**arguments.arguments(given, Path(out), (2, 4), False, False)),
    train_dataset=data, processing_class=loaded.tokenizer,
)
seen = [[sorted(batch), *(batch[name].tolist() for name in sorted(batch))] for batch in one.get_train_dataloader()]
adapter = {n: p.detach().float() for n, p in loaded.model.named_parameters() if p.requires_grad}
digest = hashlib.sha256(b"".join(adapter[n].numpy().tobytes() for n in sorted(adapter))).hexdigest()
print(json.dumps({"batches": seen, "adapter": digest, "trained": sorted(adapter)}), file=sys.__stdout__)
"""


@pytest.mark.tiny
def test_both_engines_see_the_same_rows_and_masks_in_the_same_order_and_begin_with_the_same_adapter(
    unsloth_python, tmp_path, tiny_model
):
    config = write_tiny_config(tmp_path, tiny_model)
    rows = [{"input_ids": list(range(5, 5 + 8 + i)), "labels": [-100] * 4 + list(range(9, 13 + i))} for i in range(12)]
    found = {}
    for name, python in (("transformers", sys.executable), ("unsloth", unsloth_python)):
        config.write_text(re.sub(r"\[Hardware\]\n(ENGINE.*\n)?", f"[Hardware]\nENGINE = {name}\n", config.read_text()))
        given = json.dumps(rows)
        command = [str(python), "-c", BATCHES, str(ROOT), str(config), str(tiny_model), given, str(tmp_path / name)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found[name] = json.loads(done.stdout.splitlines()[-1])
    assert len(found["transformers"]["batches"]) == 6
    assert found["unsloth"] == found["transformers"]


# ---- against its GPU classes ---------------------------------------------------------------------------------------

CALLS = """
import inspect, json, os, sys
from pathlib import Path
from types import SimpleNamespace
_, root, config, model, out = sys.argv
sys.path.insert(0, root)
from training import runs, settings
from training.base_model import BaseModel
from training.train import Loaded, Order, Watch, engine, hooks, loop, team
given = settings.load(Path(config))
os.environ["UNSLOTH_ALLOW_CPU"] = "1"  # Unsloth's own switch for tests: the GPU classes, on a machine without a GPU
engine.start(given)
import trl
from unsloth import FastLanguageModel, trainer as unsloth_trainer
from unsloth.models import rl
from unsloth import DEVICE_TYPE
plain = {f.name: f.default for f in __import__("dataclasses").fields(trl.SFTConfig) if f.init}
rl._patch_trl_rl_trainers_impl("sft_trainer")  # at import on a GPU; the switch leaves these two out
unsloth_trainer._patch_trl_trainer()
found = {"device": DEVICE_TYPE, "calls": {}, "environment": {k: v for k, v in os.environ.items() if "UNSLOTH" in k}}

def bound(name, function, result):
    signature = inspect.signature(function)
    def call(*args, **kwargs):
        signature.bind(*args, **kwargs)  # a TypeError here is a call that would fail on a GPU
        found["calls"][name] = sorted(set(kwargs) - set(signature.parameters))
        return result
    return call

network = SimpleNamespace(is_loaded_in_4bit=True, named_parameters=lambda: ())
for name, result in (("from_pretrained", (network, None)), ("get_peft_model", network)):
    setattr(FastLanguageModel, name, staticmethod(bound(name, getattr(FastLanguageModel, name), result)))
loaded = engine.load(SimpleNamespace(path=Path(model), name="a model"), given, longest=24)
from peft import LoraConfig
found["lora"] = sorted(inspect.signature(LoraConfig).parameters)

generated, config_class = loaded.trainer_class, loaded.config_class
found["classes"] = [generated.__module__, inspect.getfile(inspect.unwrap(config_class.__init__))]
parameters = inspect.signature(config_class.__init__).parameters
defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
value = lambda v: getattr(v, "value", v)
found["other defaults"] = sorted(n for n in defaults if n in plain and value(defaults[n]) != value(plain[n]) and "MISSING" not in repr(plain[n]))

class Recorded:  # stands in for the trainer: binds the call and keeps the arguments, but makes nothing
    def __init__(self, **kwargs):
        inspect.signature(generated.__init__).bind(self, **kwargs)
        self.args = kwargs["args"]
        self.args.bf16_full_eval = True  # as Unsloth's own does
    def remove_callback(self, callback): pass

def configured(**options):
    found["unknown"] = sorted(set(options) - set(parameters))
    found["given"] = sorted(options)
    made = config_class(**{**options, "use_cpu": True})  # there is no card here, which it would look for
    same = lambda a, b: a == b or (isinstance(b, list) and [a] == b) or (a == "none" and not b)
    found["changed"] = {n: [str(v), str(value(getattr(made, n)))] for n, v in options.items()
                        if n != "use_cpu" and not same(v, value(getattr(made, n)))}
    return made

import datasets
rows = datasets.Dataset.from_list([{"input_ids": [1, 2], "labels": [-100, 2]}])
session = SimpleNamespace(run=runs.Run(Path(out)), watch=Watch(folder=Path(out), fingerprint={}, keep=1, micro_batch=(2, 4)), total=6)
base = BaseModel("a model", Path(model), "folder", None, {}, 1, None)
order = Order(
    place=team.ALONE, settings=given, base=base, train=rows, validation=rows, longest=2, steps=6, fingerprint={},
    run=Path(out),
)
fake = Loaded(model=network, tokenizer=loaded.tokenizer, trainer_class=Recorded, config_class=configured)
made = loop.build(fake, order, session)
found["full eval"] = [made.args.bf16_full_eval, made.args.fp16_full_eval]
parts = [part for part in hooks.hooked(Recorded, session.watch).__mro__ if part.__module__.startswith("training.train.")]
ours = {n: inspect.getsource(f) for part in parts for n, f in vars(part).items() if inspect.isfunction(f)}
found["hooks"] = ["create_model_card", *(n for n, code in ours.items() if f"super().{n}(" in code)]  # the others are ours
found["hooks not there"] = [n for n in found["hooks"] if not hasattr(generated, n)]
inspect.signature(generated.compute_loss).bind(None, None, {}, False, None)
inspect.signature(generated.prediction_step).bind(None, None, {}, True, ignore_keys=None)
print(json.dumps(found), file=sys.__stdout__)
"""

ON_A_CARD = """[Model]
BASE_MODEL_NAME = {model}
[LoRA]
USE_DORA = true
TARGET_MODULES = all-linear
[Training]
MAX_STEPS = 6
OPTIM = adamw_8bit
GRADIENT_CHECKPOINTING = true
[Hardware]
DEVICE = cuda
ENGINE = unsloth
AUTO_FP16_BF16 = false
PRECISION = bf16
NUM_THREADS = 1
"""


@pytest.fixture(scope="session")
def calls(unsloth_python, tmp_path_factory, tiny_model) -> dict:
    """What became of our calls in a fresh process with Unsloth's GPU classes: the program's own functions make them."""
    folder = tmp_path_factory.mktemp("calls")
    (folder / "rows.jsonl").write_text('{"instruction": "Who?", "output": "I."}\n')
    (folder / "config.ini").write_text(ON_A_CARD.format(model=tiny_model) + "[Dataset]\nDATASET_FILE = rows.jsonl\n")
    command = [
        str(unsloth_python),
        "-c",
        CALLS,
        str(ROOT),
        str(folder / "config.ini"),
        str(tiny_model),
        str(folder / "run"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.tiny
def test_every_call_fits_the_gpu_classes(calls):
    assert calls["device"] == "cuda"
    assert calls["calls"]["from_pretrained"] == [], "an unknown name would go on to the model's class"
    assert calls["calls"]["get_peft_model"] == ["use_dora"] and "use_dora" in calls["lora"]
    assert {"training_step", "compute_loss", "_save_checkpoint", "create_model_card"} <= set(calls["hooks"])
    assert calls["hooks not there"] == []


@pytest.mark.tiny
def test_every_hyper_parameter_is_known_to_the_sftconfig_made_for_a_gpu_and_arrives_there(calls):
    assert calls["classes"][0] == "UnslothSFTTrainer" and "UnslothSFTTrainer" in calls["classes"][1]
    assert len(calls["given"]) > 40
    assert calls["unknown"] == [], "Unsloth drops unknown names with a print"
    assert calls["changed"] == {}
    assert calls["full eval"] == [False, False]


@pytest.mark.tiny
def test_no_default_that_unsloth_has_otherwise_is_left_to_it(calls):
    assert {"learning_rate", "optim", "warmup_steps", "weight_decay"} <= set(calls["other defaults"])
    assert set(calls["other defaults"]) - set(calls["given"]) <= LEFT


@pytest.mark.tiny
def test_unsloth_finds_its_environment_before_it_is_imported(calls):
    found = calls["environment"]
    assert found["UNSLOTH_DISABLE_STATISTICS"] == "1" and found["UNSLOTH_AUTO_INSTALL"] == "0"
    assert found["UNSLOTH_DISABLE_CPU_FALLBACK"] == "1"
    assert not Path(found["UNSLOTH_COMPILE_LOCATION"]).exists(), "it goes with the process"


# ---- where it cannot be had ----------------------------------------------------------------------------------------


def test_an_unsloth_that_cannot_be_imported_ends_with_the_reason_and_the_two_ways_on(tmp_path, monkeypatch):
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text("raise ImportError('libcudart.so.13: cannot open\\nmore')\n")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("COMPILE_LOCATION", "DISABLE_STATISTICS", "AUTO_INSTALL", "DISABLE_CPU_FALLBACK"):
        monkeypatch.setenv(f"UNSLOTH_{name}", "")
    for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    with pytest.raises(MachineError) as caught:
        engine.start(a_settings(DEVICE="cuda", ENGINE="unsloth"))
    assert caught.value.exit_code == 3
    assert str(caught.value) == (
        "Unsloth cannot be imported (ImportError: libcudart.so.13: cannot open). Repair it: remove .venv and run "
        "`ENGINE=unsloth ./setup.sh`; or set ENGINE = transformers in [Hardware] (slower)"
    )


def test_unsloth_is_told_that_there_are_several_processes_when_it_is_imported_and_nobody_else_is(tmp_path, monkeypatch):
    said = tmp_path / "said"
    (tmp_path / "unsloth").mkdir()
    (tmp_path / "unsloth" / "__init__.py").write_text(
        f"import os\nopen({str(said)!r}, 'a').write(os.environ.get('WORLD_SIZE', 'none') + ' ')\nraise ImportError\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for name in ("COMPILE_LOCATION", "DISABLE_STATISTICS", "AUTO_INSTALL", "DISABLE_CPU_FALLBACK"):
        monkeypatch.setenv(f"UNSLOTH_{name}", "")
    for name in ("TOKENIZERS_PARALLELISM", "HF_HUB_DISABLE_TELEMETRY", "HF_HUB_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for processes in (1, 2):
        with pytest.raises(MachineError):
            engine.start(a_settings(DEVICE="cuda", ENGINE="unsloth", NUM_PROCESSES=processes))
    assert said.read_text() == "none 2 " and "WORLD_SIZE" not in os.environ


CUDA = """
import importlib.metadata, os, sys
_, root, *arguments = sys.argv
sys.path.insert(0, root)
import dataclasses
from training import finetune
from training.system import this_machine
from training.system.this_machine import Gpu
inspect = this_machine.inspect
versions = {"unsloth": "2026.10.9"}
this_machine.versions = lambda: versions  # a stand-in for a machine with a card, on which the package is there and broken
this_machine.inspect = lambda: dataclasses.replace(inspect(), gpus=(Gpu("a card", 24 * 10**9, (8, 9)),), backend="cuda")
code = finetune.main(arguments)
assert "transformers" not in sys.modules, "nothing went on in this process"
sys.exit(code)
"""


@pytest.mark.tiny
def test_with_a_card_and_a_broken_unsloth_the_program_stops_with_3_and_never_trains_otherwise(tmp_path, tiny_config):
    (tmp_path / "broken" / "unsloth").mkdir(parents=True)
    (tmp_path / "broken" / "unsloth" / "__init__.py").write_text("raise OSError('no CUDA library')\n")
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "broken")}
    command = [sys.executable, "-c", CUDA, str(ROOT), "--config", str(tiny_config), "--set", "Hardware.ENGINE=auto"]
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    assert (done.returncode, done.stdout) == (3, ""), done.stderr
    assert "Unsloth cannot be imported (OSError: no CUDA library). Repair it" in done.stderr
    assert "or set ENGINE = transformers in [Hardware]" in done.stderr
    assert not list((tmp_path / "outputs").glob("finetune_*"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[Hardware]\nENGINE = unsloth\nDEVICE = cuda\nAUTO_FP16_BF16 = false\nPRECISION = fp32\n",
         "config.ini:5: [Hardware] PRECISION = fp32: on a GPU it trains in bf16 or fp16; write one, or ENGINE = transformers: "
         "[Hardware] ENGINE = unsloth (config.ini:2)"),
        ("[LoRA]\nTARGET_MODULES = q_proj,lm_head\n[Hardware]\nENGINE = unsloth\n",
         "config.ini:2: [LoRA] TARGET_MODULES = q_proj,lm_head: it trains the whole matrix of lm_head instead of LoRA; "
         "leave out, or ENGINE = transformers: [Hardware] ENGINE = unsloth (config.ini:4)"),
        ("[Training]\nPACKING = true\n[Hardware]\nENGINE = unsloth\nDEVICE = cpu\n",
         "config.ini:2: [Training] PACKING = true: on a CPU it pads rows all the same; write auto, or ENGINE = transformers: "
         "[Hardware] ENGINE = unsloth (config.ini:4)"),
        ("[Hardware]\nENGINE = unsloth\nNUM_PROCESSES = 2\nSHARDING = fsdp\n",
         "config.ini:4: [Hardware] SHARDING = fsdp: only models that transformers has loaded are spread; write "
         "ENGINE = transformers: [Hardware] ENGINE = unsloth (config.ini:2)"),
    ],
)  # fmt: skip
def test_what_unsloth_would_do_otherwise_in_silence_is_refused(tmp_path, text, message):
    (tmp_path / "config.ini").write_text(text)
    with pytest.raises(UserError) as caught:
        settings.load(tmp_path / "config.ini", check_files=False)
    assert message in str(caught.value)
