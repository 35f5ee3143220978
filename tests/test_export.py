"""Stages of the export: done again on request, not done again without one; and links broken on a run's own disk."""

from __future__ import annotations

import errno
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import small
from tests.support.gguf import edit_end, edit_tensor
from tests.support.paths import ROOT
from tests.support.programs import Ended, finetune, forked
from tests.support.runs import put_adapter
from tests.support.session import once
from tests.support.tiny import write_tiny_config
from training import runs
from training.errors import RunError, UserError
from training.evaluation import reference
from training.llama import gguf_file
from training.pipeline import export_stages
from training.pipeline.stages import export_stage
from training.runs import Run
from training.system import io_errors, paths, shell
from training.system.events import Events
from training.to_gguf.job import Job

# Its runs need no real vocabulary.
tiny_model = small.tiny_model

SCRIPT = ROOT / "training" / "export.py"
pytestmark = [pytest.mark.tiny, pytest.mark.usefixtures("forks")]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Path:
    """A folder with a finished run of two steps, its f16 file kept, and the base model it was trained on."""

    def make(folder: Path) -> None:
        config = write_tiny_config(folder, shutil.copytree(tiny_model, folder / "base"))
        text = config.read_text().replace("MAX_STEPS = 6", "MAX_STEPS = 2").replace("EVAL_STEPS = 3", "EVAL_STEPS = 0")
        config.write_text(f"{text}[Quantization]\nKEEP_F16 = true\n")
        ended = finetune("--config", config)
        assert ended.code == 0, ended.stderr
        ended.run.rename(folder / "run")

    return once(tmp_path_factory, "export", make)[0]


@pytest.fixture
def run(kept: Path, tmp_path: Path) -> Path:
    """A copy of that run, to be broken."""
    return shutil.copytree(kept / "run", tmp_path / "run")


def program(*arguments: str | Path) -> Ended:
    return forked(SCRIPT, *arguments)


def stages(run: Path) -> dict[str, dict]:
    return json.loads((run / "status.json").read_text(encoding="utf-8"))["stages"]


def times(run: Path) -> dict[str, int]:
    """When each file of the run was written; its logs and its status left out."""
    files = [path for path in run.rglob("*") if path.is_file() and path.suffix not in (".log", ".jsonl")]
    return {str(path.relative_to(run)): path.stat().st_mtime_ns for path in files if path.name != "status.json"}


def broken(run: Path, *arguments: str) -> str:
    """Export again; gives what was said when it failed with exit 1 and an empty stdout."""
    ended = program(run, *arguments)
    assert (ended.code, ended.stdout) == (1, ""), ended.stderr
    assert "Traceback" not in ended.stderr
    assert "the adapter is safe in" in ended.stderr
    return ended.stderr


def test_a_second_export_does_nothing_and_is_over_at_once(run: Path) -> None:
    before, status = times(run), stages(run)
    command = [sys.executable, str(SCRIPT), str(run)]  # a plain process, as export_ollama.sh starts it
    ended = subprocess.run(command, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, f"{run}/Modelfile\n")
    assert times(run) == before
    assert stages(run) == status


@pytest.mark.parametrize(
    ("stage", "written"),
    [("quantise", "tiny.Q4_K_M.gguf"), ("modelfile", "Modelfile"), ("merge", "merged/config.json")],
)
def test_a_stage_that_is_named_is_done_again_and_what_follows_from_it_is_forgotten(
    stage: str, written: str, run: Path
) -> None:
    before = times(run)
    ended = program(run, "--only", stage)
    assert ended.code == 0, ended.stderr
    after = times(run)
    assert after[written] > before[written]
    folder = written.partition("/")[0]
    assert {name for name in after if after[name] != before.get(name)} <= {n for n in after if n.startswith(folder)}
    names = list(export_stages.STAGES)
    assert [name for name in stages(run) if name in names] == names[: names.index(stage) + 1]


def test_a_check_of_files_that_are_out_of_date_says_what_to_do(run: Path) -> None:
    assert program(run, "--only", "convert").code == 0
    assert "check: the quantised files are not of this model any more; do the export without" in broken(
        run, "--only", "check"
    )


def test_a_stage_that_does_not_exist_is_refused(run: Path) -> None:
    ended = program(run, "--only", "mege")
    assert (ended.code, ended.stdout) == (2, "")
    assert "--only mege: one of merge, convert, quantise, modelfile, check" in ended.stderr


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    ended = program(tmp_path)
    assert (ended.code, ended.stdout) == (2, "")
    assert "Traceback" not in ended.stderr


# ---- links broken on purpose ----------------------------------------------------------------------------------------


def mended(run: Path) -> None:
    """What was broken is whole again: the same check passes."""
    ended = program(run, "--only", "check")
    assert ended.code == 0, ended.stderr
    told = json.loads((run / "status.json").read_text(encoding="utf-8"))["checks"]
    assert len(told) == 8
    assert {check["passed"] for check in told} == {True}


def test_another_base_under_the_run_fails_the_check_of_the_tensors(kept: Path, run: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    base = shutil.copytree(kept / "base", tmp_path / "other")
    tensors = load_file(base / "model.safetensors")
    tensors["model.layers.0.mlp.up_proj.weight"] = tensors["model.layers.0.mlp.up_proj.weight"].flip(0).contiguous()
    save_file(tensors, base / "model.safetensors", {"format": "pt"})
    facts = run / "checkpoints" / runs.FACTS
    whole = facts.read_text()
    other = json.loads(whole)
    other["base"]["path"] = str(base)
    facts.write_text(json.dumps(other))
    assert "model.safetensors of the base model in" in broken(run, "--only", "check")
    # A run from before the files were kept is told by its tensors.
    del other["base"]["files"]
    facts.write_text(json.dumps(other))
    said = broken(run, "--only", "check")
    assert "check 'merged tensors'" in said
    assert "model.layers.0.mlp.up_proj.weight" in said
    facts.write_text(whole)
    mended(run)


def test_a_tensor_shuffled_in_the_gguf_file_fails_the_check_of_f16(run: Path) -> None:
    f16 = run / "tiny.F16.gguf"
    whole = f16.rename(run.parent / "whole.gguf")

    def shuffle(data: Any) -> None:
        data[:] = data[::-1].copy()

    edit_tensor(whole, f16, "blk.1.attn_output.weight", shuffle)
    said = broken(run, "--only", "check")
    assert "check 'f16 GGUF': the f16 GGUF does not predict what the merged model predicts: mean KL" in said
    whole.replace(f16)
    mended(run)


def test_a_wrong_eos_in_the_gguf_file_fails_the_check_of_the_answers(run: Path) -> None:
    """The end of an answer is what the random model says first, so that it stops at all."""
    file = run / "checkpoints" / runs.FACTS
    facts = json.loads(file.read_text(encoding="utf-8"))
    facts["questions"] = facts["questions"][:1]
    prompt = facts["questions"][0]["ids"]
    with reference.opened(run / "merged") as model:
        (end,) = model.answers([prompt], [0], [1])[0].ids
    facts["end_ids"] = [end]
    file.write_text(json.dumps(facts), encoding="utf-8")
    said = broken(run, "--only", "check")
    assert f"check 'answers': the merged model stops at token {end}, which the GGUF does not take for an end" in said
    for gguf in run.glob("*.gguf"):
        edit_end(gguf, end)
    mended(run)


def test_a_base_that_is_gone_is_told_with_its_place(kept: Path, run: Path, tmp_path: Path) -> None:
    facts = run / "checkpoints" / runs.FACTS
    facts.write_text(facts.read_text().replace(str(kept / "base"), str(tmp_path / "gone")))
    assert f"merge: the base model is no longer at {tmp_path}/gone; put it back" in broken(run, "--only", "merge")


def test_a_base_that_changed_since_the_training_is_told_by_its_file(kept: Path, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(kept / "base", tmp_path / "other")
    facts = run / "checkpoints" / runs.FACTS
    facts.write_text(facts.read_text().replace(str(kept / "base"), str(other)))
    assert program(run, "--only", "merge").code == 0, "a copy is the same model"
    (other / "generation_config.json").write_text('{"eos_token_id": 3}')
    said = broken(run, "--only", "merge")
    assert f"merge: generation_config.json of the base model in {other} is not what was trained on; put it back" in said


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (UserError("/m: its tokenizer cannot be read"), "/m: its tokenizer cannot be read"),
        (RunError("quantise", "no"), "no"),
        (OSError(errno.EIO, "x", "/m"), f"/m: Input/output error; {io_errors.REMEDIES[errno.EIO]}"),
        (
            UserError("/m: cannot be read: Stale file handle (os error 116)"),
            f"/m: cannot be read: Stale file handle (os error 116); {io_errors.REMEDIES[errno.ESTALE]}",
        ),
    ],
    ids=["a user's", "a stage's", "the drive's", "the drive's, through a reader"],
)
def test_whatever_ends_a_stage_is_told_with_the_stage_what_is_safe_and_how_to_go_on(
    error: Exception, said: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Job) -> dict[str, Any]:
        raise error

    monkeypatch.setitem(export_stages.STAGES, "quantise", (lambda job: False, fail))
    with pytest.raises(RunError) as caught:
        export_stages.export(Job.of_run(run), only="quantise")
    safe = f"the adapter is safe in {run}/adapter; `{shell.lasting('run.sh', '--resume', run)}` does the rest again"
    assert (caught.value.stage, caught.value.message, caught.value.safe) == ("quantise", said, safe)


def test_an_export_that_ends_before_it_has_read_its_run_leaves_a_word_of_how_to_go_on(tmp_path: Path) -> None:
    put_adapter(tmp_path)
    told = export_stages.failure(Run(tmp_path), 2, {})
    assert str(told).startswith("export: its process ended with exit code 2, for the reason above\nthe adapter is safe")


def test_an_export_is_done_when_its_checks_are_and_not_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the ends of children are ignored, one that was killed seems to have ended well, too."""
    put_adapter(tmp_path)
    (tmp_path / "export.py").write_text('print(\'{"stage": "merge", "seconds": 0.1}\')\n', encoding="utf-8")
    monkeypatch.setattr(paths, "TRAINING", tmp_path)
    run, events = Run(tmp_path), Events(tmp_path / runs.EVENTS)
    run.finish_stage("merge", {})
    with pytest.raises(RunError, match="^export: its process ended before its work was done\nthe adapter is safe"):
        export_stage(run, events)
    run.finish_stage("check", {})
    export_stage(run, events)


def test_an_adapter_that_was_not_trained_fails_the_export(kept: Path, run: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = run / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor * ("lora_A" in name) for name, tensor in load_file(file).items()}, file)
    assert program(run, "--only", "merge").code == 0
    said = broken(run)
    assert "check 'merged tensors': the adapter changes nothing" in said
    shutil.copy(kept / "run" / "adapter" / "adapter_model.safetensors", file)
    assert program(run, "--only", "merge").code == 0
    ended = program(run)
    assert ended.code == 0, ended.stderr


def test_a_stray_space_in_the_template_fails_the_check_of_the_modelfile(run: Path) -> None:
    file = run / "Modelfile"
    file.write_text(file.read_text().replace("<|im_start|>assistant\n{{ end }}", "<|im_start|>assistant \n{{ end }}"))
    assert "check 'modelfile': TEMPLATE is not the chat template" in broken(run, "--only", "check")
    assert program(run, "--only", "modelfile").code == 0
    assert program(run).code == 0, "mended, it passes"


def test_a_tokenizer_changed_in_merged_fails_the_check_of_the_tokenizer(run: Path) -> None:
    file = run / "merged" / "tokenizer.json"
    tokenizer = json.loads(file.read_text(encoding="utf-8"))
    words = tokenizer["model"]["vocab"]
    words["a"], words["b"] = words["b"], words["a"]
    file.write_text(json.dumps(tokenizer), encoding="utf-8")
    assert "check 'GGUF tokenizer': llama.cpp cuts" in broken(run, "--only", "check")


def test_a_stop_text_that_is_missing_fails_the_check_of_the_modelfile(run: Path) -> None:
    file = run / "Modelfile"
    file.write_text(file.read_text().replace('PARAMETER stop "<|im_end|>"\n', ""))
    assert "PARAMETER stop is missing for '<|im_end|>'" in broken(run, "--only", "check")


def test_a_stage_that_is_named_makes_again_what_it_works_on_and_was_not_kept(run: Path) -> None:
    shutil.rmtree(run / "merged")
    (run / "tiny.F16.gguf").unlink()
    quantised = (run / "tiny.Q4_K_M.gguf").stat().st_ino
    ended = program(run, "--only", "check")
    assert ended.code == 0, ended.stderr
    assert {"merged/config.json", "tiny.F16.gguf"} <= set(times(run))
    assert (run / "tiny.Q4_K_M.gguf").stat().st_ino == quantised, "only what the checks found is written into it"


def test_a_method_that_needs_an_importance_matrix_is_made_from_the_rows_of_the_training(run: Path) -> None:
    config = run / "config.ini"
    text = config.read_text(encoding="utf-8").replace("= q4_k_m", "= q4_k_m, iq2_xs, f16")
    config.write_text(text, encoding="utf-8")
    before = times(run)
    ended = program(run, "--only", "quantise")
    assert ended.code == 0, ended.stderr
    assert "importance matrix: " in ended.stderr
    made = stages(run)["quantise"]
    facts = json.loads((run / "checkpoints" / runs.FACTS).read_text(encoding="utf-8"))
    assert made["importance"]["tokens"] == len(facts["calibration"]) > 200
    assert made["importance"]["tensors"] == 14
    assert gguf_file.read(run / "tiny.IQ2_XS.gguf").tensors["blk.1.attn_q.weight"].kind_name == "IQ2_XS"
    assert set(times(run)) - set(before) == {"tiny.IQ2_XS.gguf"}, "nothing else is left"
    assert program(run).code == 0
    table = json.loads((run / "status.json").read_text(encoding="utf-8"))["quantised"]
    assert [(row["method"], row.get("importance", False)) for row in table] == [
        *(("q4_k_m", False), ("iq2_xs", True), ("f16", False)),
    ]
    one, other, f16 = table
    assert 0 < one["kl"] < other["kl"]
    assert one["perplexity_change"] == pytest.approx(one["perplexity"] / f16["perplexity"] - 1, abs=1e-9)
    facts["calibration"] = []
    (run / "checkpoints" / runs.FACTS).write_text(json.dumps(facts), encoding="utf-8")
    said = broken(run, "--only", "quantise")
    assert "quantise: the importance matrix for iq2_xs: there are no training rows to take it from" in said
