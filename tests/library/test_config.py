"""FineTuningConfig: the table of settings under the names of Python, and what is said of what is not in it."""

import errno
import os
import re
import typing
from pathlib import Path

import pytest

from tests.support.paths import ROOT
from training import FineTuningConfig, MachineError, UserError, settings
from training.library import keywords
from training.settings import other_names
from training.settings.table import TABLE
from training.system import files

KINDS = {
    "int": "int", "float": "float", "bool": "bool", "bool | Auto": "bool | str", "bool | Auto | Int8": "bool | str",
    "int | Auto": "int | str", "float | Auto": "float | str", "str": "str",
    "str | None": "str", "Path": "str | os.PathLike[str]", "Path | None": "str | os.PathLike[str]",
    "tuple[str, ...]": "str | Sequence[str]",
}  # fmt: skip
# The fields of the class that one guide's library has.
OF_THE_GUIDE = {
    "model_name": "./here", "output_dir": "results", "lora_r": 16, "lora_alpha": 32, "lora_dropout": 0.05, "batch_size": 4,
    "num_train_epochs": 3, "learning_rate": 2e-4, "max_seq_length": 2048, "save_steps": 100, "logging_steps": 10,
    "eval_steps": 50, "fp16": False, "bf16": True, "use_wandb": False, "wandb_project": "p", "wandb_run_name": "first",
}  # fmt: skip


def problems(**given):
    with pytest.raises(UserError) as error:
        FineTuningConfig(**given)
    return error.value.problems


def test_the_keywords_are_the_names_that_are_taken_with_the_types_of_their_settings():
    wanted = {}
    for name, key in other_names.TAKEN.items():
        kind = "str | os.PathLike[str]" if key == "Model.BASE_MODEL_NAME" else KINDS[TABLE[key].kind]
        wanted[name.replace("-", "_")] = f"{kind} | None"
    wanted |= dict.fromkeys(other_names.IMPLIED, "bool | None")
    wanted = {name.replace("-", "_"): kind for name, kind in wanted.items()}
    written = dict(re.findall(r"^    (\w+): (.*)$", Path(keywords.__file__).read_text(encoding="utf-8"), re.M))
    assert written == wanted
    assert set(typing.get_type_hints(keywords.Keywords)) == set(wanted)


def test_a_guide_s_class_is_made_as_it_is_written_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FineTuningConfig(**OF_THE_GUIDE)
    made = config.settings
    assert (made.model.base_model_name, made.training.output_dir) == (str(tmp_path / "here"), tmp_path / "results")
    assert (made.lora.r, made.lora.lora_alpha, made.lora.lora_dropout) == (16, 32, 0.05)
    assert (made.training.num_train_epochs, made.training.max_steps) == (3, 0)
    assert (made.hardware.auto_fp16_bf16, made.hardware.precision, made.training.report_to) == (False, "bf16", "none")
    assert (made.training.report_project, made.training.report_name) == ("p", "first")
    read = {name: getattr(config, name) for name in OF_THE_GUIDE}
    assert read == {**OF_THE_GUIDE, "model_name": str(tmp_path / "here"), "output_dir": tmp_path / "results"}


def test_the_names_of_the_file_are_taken_too_and_its_defaults():
    made = FineTuningConfig(
        r=8, per_device_train_batch_size=1, target_modules=["q_proj", "v_proj"], packing=True
    ).settings
    assert (made.lora.r, made.training.per_device_train_batch_size, made.training.packing) == (8, 1, True)
    assert made.lora.target_modules == ("q_proj", "v_proj")
    assert FineTuningConfig().settings.differences() == []
    assert FineTuningConfig(learning_rate=None, seed=None).settings.differences() == []


def test_a_number_of_steps_has_the_last_word():
    assert FineTuningConfig(max_steps=5, num_train_epochs=3).max_steps == 5
    assert FineTuningConfig(num_train_epochs=3, max_steps=5).max_steps == 5


def test_all_that_is_wrong_is_told_at_once_and_with_what_would_do():
    assert problems(lr=1e-4, val_dta="x", lora_r=0, batch_size=2.5, lora_alpha={}, foo=1, max_new_tokens=3) == [
        "lr= is not a setting; write learning_rate",
        "val_dta= is not a setting; did you mean val_data?",
        "lora_alpha={}: expected text, a number, true or false, or a list of names, not dict",
        "foo= is not a setting",
        "max_new_tokens= is not a setting",
        "lora_r=0: must be at least 1",
        "batch_size=2.5: expected a whole number",
    ]
    assert problems(bf16=True, fp16=True) == ["fp16= and bf16= both set [Hardware] AUTO_FP16_BF16; leave one out"] or (
        problems(bf16=True, fp16=True) == ["bf16= and fp16= both set [Hardware] AUTO_FP16_BF16; leave one out"]
    )
    assert problems(fp16=True, device="cpu") == [
        "fp16: Hardware.PRECISION=fp16: a CPU trains in bf16 or fp32: [Hardware] DEVICE = cpu (device=)"
    ]
    with pytest.raises(AttributeError, match="^lora_rank is not a setting; write lora_r$"):
        FineTuningConfig().lora_rank  # noqa: B018


def test_what_is_no_number_is_said_so():
    with pytest.raises(UserError) as error:
        FineTuningConfig(learning_rate=float("nan"))
    assert error.value.problems == ["learning_rate=nan: expected a number such as 0.1 or 2e-4"]


def test_a_text_is_taken_as_it_stands():
    for text in ("@no file", "none", "a\\n b", 'a "b"\n# c', " x "):
        config = FineTuningConfig(system_prompt=text)
        assert config.system_prompt == text
        assert settings.loading.of(
            settings.ini_file.parse(config.settings.to_ini()), Path("/x/config.ini"), check_files=False
        ).model.system_prompt == text  # fmt: skip


def test_what_is_written_is_read_back_and_run_sh_reads_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FineTuningConfig(
        model_name="embedded/SmolLM2-135M-Instruct", lora_r=4, learning_rate=1e-3, system_prompt="@"
    )
    file = config.write("notebook.ini")
    assert file == tmp_path / "notebook.ini"
    assert FineTuningConfig.read("notebook.ini") == config
    assert settings.load(file, check_files=False) == config.settings


def test_a_file_is_read_with_changes_and_its_paths_start_where_it_lies(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = FineTuningConfig.read(ROOT / "config.ini", lora_r=4)
    assert (config.lora_r, config.learning_rate, config.data_path) == (4, 2e-3, ROOT / "train_data.jsonl")
    # The validation rows that a file names for its own rows do not belong to others.
    assert config.val_data == ROOT / "validation_data.jsonl"
    assert config.replace(data_path="other.jsonl").val_data is None
    with pytest.raises(UserError, match="no such file"):
        FineTuningConfig.read("none.ini")


def test_a_change_takes_the_place_of_the_same_setting_by_another_name():
    config = FineTuningConfig(data_path="a.jsonl", lora_r=4).replace(dataset_file="b.jsonl")
    assert (config.data_path.name, config.lora_r) == ("b.jsonl", 4)
    assert FineTuningConfig(fp16=True).replace(bf16=True).precision == "bf16"
    assert repr(config) == f"FineTuningConfig(lora_r=4, data_path='{Path.cwd()}/b.jsonl')"


def test_an_attribute_that_is_set_is_a_setting_and_one_that_is_none_is_refused(tmp_path):
    # In the guide's library they are the fields of a dataclass: whoever sets one has to be heard.
    config = FineTuningConfig(lora_r=4, num_train_epochs=3)
    config.lora_r, config.batch_size, config.max_steps = 8, 2, 5
    assert (config.settings.lora.r, config.settings.training.per_device_train_batch_size) == (8, 2)
    assert (config.lora_r, config.settings.training.max_steps) == (8, 5)
    assert config == FineTuningConfig(lora_r=8, batch_size=2, num_train_epochs=3, max_steps=5)
    assert FineTuningConfig.read(config.write(tmp_path / "config.ini")).lora_r == 8
    config.r = None
    assert config.lora_r == 16
    before = config.settings
    with pytest.raises(UserError, match="lora_r=0: must be at least 1"):
        config.lora_r = 0
    with pytest.raises(AttributeError, match="^lora_rank is not a setting; write lora_r$"):
        config.lora_rank = 8
    with pytest.raises(AttributeError, match="^settings is not a setting$"):
        config.settings = 8
    assert config.settings is before and config.lora_r == 16


def test_one_number_of_numpy_or_torch_is_that_number():
    numpy = pytest.importorskip("numpy")
    made = FineTuningConfig(
        lora_r=numpy.int64(8), learning_rate=numpy.float64(1e-3), packing=numpy.bool_(True)
    ).settings
    assert (made.lora.r, made.training.learning_rate, made.training.packing) == (8, 1e-3, True)
    assert FineTuningConfig(lora_r=numpy.array(8)).lora_r == 8
    assert problems(lora_r=numpy.array([8, 9]))[0].endswith("or a list of names, not ndarray")


def test_a_file_that_cannot_be_written_is_said_so(tmp_path, monkeypatch):
    config = FineTuningConfig()
    for path, said in (
        (tmp_path / "none" / "c.ini", f"there is no folder {tmp_path}/none"),
        (tmp_path, "it is a folder"),
    ):
        with pytest.raises(UserError, match=f"^{path} cannot be written: {said}"):
            config.write(path)
    monkeypatch.setattr(files, "write_text", refuse)
    with pytest.raises(MachineError, match="c.ini cannot be written: Read-only file system"):
        config.write(tmp_path / "c.ini")


def refuse(path: Path, text: str) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(path))
