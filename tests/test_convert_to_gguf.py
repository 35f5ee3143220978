"""convert_to_gguf.py: any Hugging Face folder as GGUF files, proved before they appear."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from tests.support.programs import Ended, forked
from training import convert_to_gguf, llama
from training.errors import RunError, UserError
from training.llama import gguf_file
from training.llama import process as process_module
from training.ollama import modelfile_syntax


def run(*arguments: str | Path) -> list[Path]:
    return convert_to_gguf.run(convert_to_gguf.parser().parse_args([str(a) for a in arguments]))


def refused(*arguments: str | Path) -> str:
    with pytest.raises(UserError) as error:
        run(*arguments)
    return str(error.value)


def program(*arguments: str | Path) -> Ended:
    return forked(ROOT / "training" / "convert_to_gguf.py", *arguments)


def listed(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# ---- refused before anything is done --------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_wrong_path_exits_with_2_one_line_and_an_empty_stdout(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    ended = program("--model-path", tmp_path / "modle")
    assert (ended.code, ended.stdout) == (2, "")
    assert ended.stderr == f"error: {tmp_path}/modle does not exist; did you mean {tmp_path}/model?\n"


@pytest.mark.slow
def test_missing_and_unknown_flags_exit_with_2() -> None:
    assert "required: --model-path" in program("--quantization", "q8_0").stderr
    ended = program("--model-path", "x", "--quant", "q8_0")  # not taken for --quantization
    assert ended.code == 2
    assert "unrecognized arguments: --quant q8_0" in ended.stderr


def test_wrong_quantisations_are_named_together(tmp_path: Path) -> None:
    said = refused("--model-path", tmp_path, "--quantization", "q4_k_n, q8_0,q9")
    assert "--quantization q4_k_n: q4_k_n is not a quantisation of llama.cpp; q4_k_m, q8_0 and f16 are" in said
    assert "--quantization q9: q9 is not a quantisation of llama.cpp" in said
    assert "--quantization is empty" in refused("--model-path", tmp_path, "--quantization", " , ")


def test_a_folder_that_is_no_model_and_a_gguf_file_are_refused(tmp_path: Path) -> None:
    assert "is no model folder: it holds no config.json" in refused("--model-path", tmp_path)
    assert "it is a GGUF file already" in refused("--model-path", tmp_path / "a.gguf")


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_a_name_that_ollama_does_not_take_is_refused(tiny_model: Path) -> None:
    assert "--model-name a b: Ollama takes a model of" in refused("--model-path", tiny_model, "--model-name", "a b")


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_one_output_file_for_several_quantisations_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    several = ("--model-path", tiny_model, "--quantization", "q8_0,q4_0", "--output", tmp_path / "a.gguf")
    assert "2 quantisations make as many files; name a folder" in refused(*several)
    one = ("--model-path", tiny_model, "--output", tmp_path / "a.bin")
    assert "a file name ends in .gguf, and a folder in / or exists already" in refused(*one)


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_a_folder_that_cannot_be_written_exits_with_3(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    ended = program("--model-path", tiny_model, "--output", tmp_path / "file" / "a.gguf")
    assert (ended.code, ended.stdout) == (3, "")
    assert f"{tmp_path}/file cannot be written: Not a directory; --output names another" in ended.stderr


@pytest.mark.slow
def test_what_a_killed_process_left_is_removed_by_the_next_and_a_living_ones_is_not(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    target = tmp_path / "a [1].Q8_0.gguf"
    dead, living, other = (
        tmp_path / f".{name}.{process}.partial"
        for name, process in ((target.name, ended.pid), (target.name, os.getppid()), ("b.gguf", ended.pid))
    )
    for folder in (dead, living, other):
        folder.mkdir()
        (folder / "model.F16.gguf").touch()
    with convert_to_gguf.workspace(target) as room:
        assert room.is_dir()
        assert not dead.exists()
    assert listed(tmp_path) == sorted([living.name, other.name])


def test_a_method_that_needs_an_importance_matrix_asks_for_a_text(tmp_path: Path) -> None:
    said = refused("--model-path", tmp_path, "--quantization", "q8_0,iq2_xs")
    assert "--quantization iq2_xs: it needs an importance matrix, and that a text" in said
    assert "(--calibration FILE), or take q3_k_m or q2_k" in said
    text = tmp_path / "text.txt"
    flags = ("--model-path", tmp_path, "--quantization", "iq2_xs", "--calibration", text)
    assert "text.txt: cannot be read: No such file" in refused(*flags)
    text.write_text("one two three")
    assert "text.txt: a text of 200 words at least is wanted" in refused(*flags)
    text.write_bytes(b"\xff\xfe")
    assert "text.txt: not UTF-8 text (byte 0)" in refused(*flags)
    for endless in ("/dev/zero", tmp_path / "pipe"):
        if endless != "/dev/zero":
            os.mkfifo(endless)
        assert f"--calibration {endless}: is no file; a text is wanted" in refused(*flags[:-1], endless)


# ---- done, and proved -----------------------------------------------------------------------------------------------


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_the_program_prints_the_paths_of_proved_files_and_leaves_nothing_else(tiny_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    ended = program(
        *("--model-path", tiny_model, "--quantization", "Q4_K_M,f16", "--output", f"{out}{os.sep}"),
        *("--create-modelfile", "--model-name", "me/tiny:1"),
    )
    assert ended.code == 0, ended.stderr
    assert ended.stdout == f"{out}/me-tiny-1.Q4_K_M.gguf\n{out}/me-tiny-1.F16.gguf\n"
    assert listed(out) == ["Modelfile.me-tiny-1", "me-tiny-1.F16.gguf", "me-tiny-1.Q4_K_M.gguf"]
    for check in ("GGUF tokenizer", "f16 GGUF", "quantised me-tiny-1.Q4_K_M.gguf"):
        assert f"check {check}: passed (" in ended.stderr
    assert gguf_file.read(out / "me-tiny-1.Q4_K_M.gguf").tensors["blk.0.attn_q.weight"].kind_name == "Q4_K"
    assert gguf_file.read(out / "me-tiny-1.F16.gguf").tensors["blk.0.attn_q.weight"].kind_name == "F16"
    commands = modelfile_syntax.read(out / "Modelfile.me-tiny-1")
    assert ("from", "./me-tiny-1.Q4_K_M.gguf") in commands
    assert ("stop", "<|im_end|>") in commands
    assert ("num_ctx", "512") in commands
    assert "<|im_start|>assistant" in dict(commands)["template"]


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_a_model_without_a_chat_template_gets_a_modelfile_for_plain_text(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "base")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (made,) = run("--model-path", folder, "--quantization", "q8_0", "--create-modelfile")
    assert made == tmp_path / "base.Q8_0.gguf"
    assert listed(tmp_path) == ["Modelfile.base", "base", "base.Q8_0.gguf"]
    assert dict(modelfile_syntax.read(tmp_path / "Modelfile.base"))["template"] == "{{ .Prompt }}"
    assert len(llama.answer(made, ["Once upon a time"], 3, [])[0].ids) == 3


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_a_tokenizer_that_llama_cpp_reads_otherwise_fails_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other_tokens(gguf: Path, texts: list[str]) -> list[list[int]]:
        return [ids[:-1] for ids in tokenise(gguf, texts)]

    tokenise = process_module.tokenise
    monkeypatch.setattr(process_module, "tokenise", other_tokens)
    with pytest.raises(RunError, match="^check 'GGUF tokenizer': llama.cpp cuts"):
        run("--model-path", tiny_model, "--quantization", "q8_0", "--output", tmp_path / "a.gguf", "--create-modelfile")
    assert listed(tmp_path) == []


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_a_folder_that_the_converter_does_not_know_exits_with_1_and_leaves_nothing(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text()) | {"architectures": ["FooForCausalLM"]}
    (folder / "config.json").write_text(json.dumps(config))
    ended = program("--model-path", folder)
    assert (ended.code, ended.stdout) == (1, "")
    assert "llama.cpp cannot convert the architecture FooForCausalLM" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert listed(tmp_path) == ["model"]


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_a_damaged_tokenizer_is_told_before_the_work(tiny_model: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_model, tmp_path / "model")
    (folder / "tokenizer.json").write_text('{"version": "1.0"}')
    assert "model: its tokenizer cannot be read: " in refused("--model-path", folder, "--create-modelfile")
    assert listed(tmp_path) == ["model"]


@pytest.mark.tiny
@pytest.mark.usefixtures("forks")
def test_the_smallest_types_are_made_with_the_importance_matrix_of_a_text(tiny_model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("What is the answer to this? It is forty-two, and not one more. " * 30)
    (made,) = run(
        *("--model-path", tiny_model, "--quantization", "iq2_xs", "--output", tmp_path / "a.gguf"),
        *("--calibration", tmp_path / "text.txt"),
    )
    found = gguf_file.read(made)
    assert found.tensors["blk.0.attn_q.weight"].kind_name == "IQ2_XS"
    assert found.fields["quantize.imatrix.entries_count"] == 14
    assert listed(tmp_path) == ["a.gguf", "text.txt"]
