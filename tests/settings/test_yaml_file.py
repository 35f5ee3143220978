"""A YAML file of another tool as --config: it is refused with the INI lines that say the same, and those are taken."""

import pytest

from training import settings
from training.errors import UserError

# As the guides have them: the settings of a service, and those of a script.
SERVICE = """
base_model: Qwen/Qwen3-0.6B
lora_config:
  r: 8
  lora_alpha: 32
  target_modules: [q_proj, v_proj]
  lora_dropout: 0.05
  bias: none
training:
  num_epochs: 3
  batch_size: 4
  learning_rate: 2e-4
  warmup_steps: 10
  max_grad_norm: 0.5
  fp16: true
  tf32_mode: maybe
"""
SCRIPT = """
model:
  name: Qwen/Qwen3-0.6B
  max_length: 512
data:
  path: rows.jsonl
  val_data:
quantization:
  load_in_4bit: false
wandb_api_key: 0123456789
"""


def lines(tmp_path, text):
    path = tmp_path / "models.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        settings.load(path)
    assert error.value.title == f"{path}: settings are read from an INI file such as config.ini; this one would be"
    return error.value.problems


def test_the_lines_that_say_the_same_are_told(tmp_path):
    assert lines(tmp_path, SERVICE) == [
        *("[Model]", "BASE_MODEL_NAME = Qwen/Qwen3-0.6B"),
        *("[LoRA]", "R = 8", "LORA_ALPHA = 32", "LORA_DROPOUT = 0.05", "BIAS = none", "TARGET_MODULES = q_proj,v_proj"),
        *("[Training]", "PER_DEVICE_TRAIN_BATCH_SIZE = 4", "LEARNING_RATE = 2e-4", "MAX_STEPS = 0"),
        *("NUM_TRAIN_EPOCHS = 3", "WARMUP_STEPS = 10", "MAX_GRAD_NORM = 0.5"),
        *("[Hardware]", "AUTO_FP16_BF16 = false", "PRECISION = fp16"),
        "# no setting here: training.tf32_mode",
    ]


def test_a_value_is_known_by_its_parent_too_and_no_secret_is_shown(tmp_path):
    assert lines(tmp_path, SCRIPT) == [
        *("[Model]", "BASE_MODEL_NAME = Qwen/Qwen3-0.6B", "MAX_SEQ_LENGTH = 512"),
        *("[Dataset]", "DATASET_FILE = rows.jsonl", "VALIDATION_FILE ="),
        *("[Quantization]", "LOAD_IN_4BIT = false"),
        "# no setting here: wandb_api_key",
    ]


def test_those_lines_are_a_settings_file(tmp_path):
    (tmp_path / "config.ini").write_text("\n".join(f"  {line}" for line in lines(tmp_path, SERVICE)), encoding="utf-8")
    made = settings.load(tmp_path / "config.ini", check_files=False)
    assert (made.lora.r, made.training.num_train_epochs, made.training.max_steps) == (8, 3, 0)
    assert made.lora.target_modules == ("q_proj", "v_proj")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [1", ":1: is YAML, which is not read here, and cannot be read as YAML either"),
        ("a: !!python/object:os.system x", ":1: is YAML, which is not read here, and cannot be read as YAML either"),
    ],
)
def test_what_is_no_yaml_either_is_said_so(tmp_path, text, said):
    (tmp_path / "x.yml").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as error:
        settings.load(tmp_path / "x.yml")
    assert str(error.value) == f"{tmp_path}/x.yml{said}"


def test_a_file_that_unfolds_without_end_is_looked_at_up_to_a_bound(tmp_path):
    bomb = "\n".join(f"x{n}: &x{n} {{a: *x{n - 1}, b: *x{n - 1}}}" if n else "x0: &x0 {k: 1, l: 2}" for n in range(30))
    assert lines(tmp_path, bomb)[-1].startswith("# no setting here: ")
    for endless in ("a: &a [*a]", "a: &a {b: *a, c: *a}", "&a {" + ", ".join(f"k{n}: *a" for n in range(50)) + "}"):
        assert lines(tmp_path, endless) == ["# (nothing in it is a setting here)"]


def test_before_the_set_up_it_is_still_refused(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    (tmp_path / "x.yaml").write_text("lora_r: 8", encoding="utf-8")
    with pytest.raises(UserError, match="is YAML; settings are read from an INI file such as config.ini$"):
        settings.load(tmp_path / "x.yaml")
