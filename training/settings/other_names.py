"""Names that others give to our settings: which are taken as they stand, and what is meant by those that are not.

A name is compared in small letters, with dashes. Taken, as a flag, in Python and in a YAML file: the flags of --help,
every KEY by its own name (--save-steps), and the names that guides use (TAKEN, IMPLIED). Of all other names that the
field uses (MEANT, DONE_BY, SAID) is said what to write here. Only what is none of these is guessed at by its letters.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

from training.settings import names
from training.settings.table import EVERY, EVERY_SECTION, SECTIONS, TABLE
from training.settings.usage import COMMANDS, SERVICE_FLAGS, SETTING_FLAGS, SWITCHES
from training.system import shell

Door = Literal["flag", "key", "python"]
EPOCHS, STEPS = "Training.NUM_TRAIN_EPOCHS", "Training.MAX_STEPS"


def plain(name: str) -> str:
    """A name as it is compared: max_steps, --max-steps and MAX_STEPS are one."""
    return name.lstrip("-").lower().replace("_", "-")


# Settings by the names of guides.
TAKEN: dict[str, str] = {
    **{plain(item.key): item.name for item in TABLE.values()},
    **{plain(flag): key for flag, key in SETTING_FLAGS.items()},
    **dict.fromkeys(("base-model", "model-name"), "Model.BASE_MODEL_NAME"),
    **dict.fromkeys(("train-data", "dataset-path", "data-path"), "Dataset.DATASET_FILE"),
    "val-data": "Dataset.VALIDATION_FILE",
    "test-data": "Dataset.TEST_FILE",
    "train-test-split": "Dataset.VALIDATION_SPLIT",
    "dataset-format": "Dataset.FORMAT",
    "num-epochs": EPOCHS,
    "use-quantization": "Quantization.LOAD_IN_4BIT",
    "wandb-project": "Training.REPORT_PROJECT",
    "wandb-run-name": "Training.REPORT_NAME",
}
# Those that are usual in Python where the setting's own name is not.
IN_PYTHON = {
    "Model.BASE_MODEL_NAME": "model_name",
    "LoRA.R": "lora_r",
    "Dataset.DATASET_FILE": "data_path",
    "Training.PER_DEVICE_TRAIN_BATCH_SIZE": "batch_size",
}
# Names that are true or false, and what `true` and `false` come to.
IMPLIED: dict[str, Mapping[str, tuple[tuple[str, str], ...]]] = {
    "use-wandb": {"true": (("Training.REPORT_TO", "wandb"),), "false": (("Training.REPORT_TO", "none"),)},
    **{
        # `false` says what it is not, and leaves the choice to the hardware.
        kind: {"true": (("Hardware.AUTO_FP16_BF16", "false"), ("Hardware.PRECISION", kind)), "false": ()}
        for kind in ("fp16", "bf16")
    },
}
# --dataset-format names the file's form in one guide, which its ending says, and the rows' in others.
FILE_FORMS = ("json", "jsonl", "csv", "txt")
ROW_FORMS = {"sharegpt": "conversations", "openai": "messages", "chatml": "messages"}
# Names that are not taken, by the setting that is meant.
MEANT: dict[str, str] = {
    word: key
    for key, words in {
        "Model.BASE_MODEL_NAME": "model-id model-path model-name-or-path base pretrained-model checkpoint",
        "Model.NEW_MODEL_NAME": "output-name ollama-name new-model save-name model-tag tag",
        "Model.MAX_SEQ_LENGTH": "max-len max-seq-len seq-len seq-length sequence-length sequence-len max-tokens cutoff-len "
        "cutoff context context-length ctx ctx-size num-ctx n-ctx block-size model-max-length max-context",
        "Model.CHAT_TEMPLATE": "template conversation-template jinja chat-template-path",
        "Model.SYSTEM_PROMPT": "system system-message default-system",
        "Model.REVISION": "branch commit model-revision",
        "Model.TRUST_REMOTE_CODE": "remote-code allow-remote-code",
        "LoRA.R": "rank lora-rank lora-dim lora-size",
        "LoRA.LORA_ALPHA": "alpha",
        "LoRA.LORA_DROPOUT": "dropout",
        "LoRA.BIAS": "lora-bias",
        "LoRA.TARGET_MODULES": "targets target lora-target lora-targets lora-target-modules modules layers",
        "LoRA.USE_DORA": "dora",
        "LoRA.USE_RSLORA": "rslora",
        "Dataset.DATASET_FILE": "dataset train train-file train-dataset training-data training-file input file data-file "
        "dataset-name data-files rows",
        "Dataset.VALIDATION_FILE": "val valid validation validation-data val-file valid-data valid-file eval-data eval-file "
        "eval-dataset val-dataset validation-dataset dev dev-data",
        "Dataset.VALIDATION_SPLIT": "val-size val-split eval-split valid-split validation-size eval-size val-ratio "
        "val-set-size validation-ratio eval-ratio",
        "Dataset.TEST_FILE": "test-dataset",
        "Dataset.TEST_SPLIT": "test-size test-ratio test-share",
        "Dataset.FORMAT": "data-format row-format format-type dataset-type data-type",
        "Dataset.MAX_ROWS": "max-samples num-samples limit max-train-samples max-examples",
        "Dataset.TRAIN_ON": "train-on-inputs train-on-input train-on-prompt completion-only completion-only-loss "
        "train-on-responses-only assistant-only-loss",
        "Dataset.TRAIN_TURNS": "mask-history turns",
        "Dataset.PROMPT_TEMPLATE": "prompt-format prompt-style",
        "Dataset.ON_BAD_ROW": "skip-bad-rows skip-bad ignore-errors skip-errors",
        "Training.PER_DEVICE_TRAIN_BATCH_SIZE": "bs batch micro-batch-size micro-batch per-device-batch-size "
        "train-batch-size batch-size-per-device",
        "Training.GRADIENT_ACCUMULATION_STEPS": "gradient-accumulation grad-accum grad-acc accumulation "
        "accumulation-steps grad-accumulation-steps accum ga gas grad-accum-steps",
        "Training.LEARNING_RATE": "lr rate learn-rate lrate",
        STEPS: "steps num-steps iters iterations max-iters train-steps max-train-steps total-steps num-train-steps",
        EPOCHS: "epoch-count n-epochs max-epochs train-epochs nb-epochs passes",
        "Training.WARMUP_STEPS": "warmup warm-up num-warmup-steps lr-warmup-steps",
        "Training.OUTPUT_DIR": "out output-path out-dir outdir save-dir save-path output-folder results-dir logging-dir "
        "adapter-path",
        "Training.LOGGING_STEPS": "log-steps log-every log-interval logging-interval steps-per-report",
        "Training.WEIGHT_DECAY": "wd decay",
        "Training.LR_SCHEDULER_TYPE": "scheduler lr-scheduler lr-schedule schedule scheduler-type",
        "Training.MAX_GRAD_NORM": "grad-clip clip clip-grad gradient-clipping gradient-clip max-norm grad-norm",
        "Training.OPTIM": "optimizer optimiser optimizer-type",
        "Training.SEED": "random-seed data-seed manual-seed rng-seed random-state",
        "Training.SAVE_STEPS": "save-every save-interval save-strategy checkpoint-steps checkpoint-every save-freq",
        "Training.SAVE_TOTAL_LIMIT": "keep-checkpoints max-checkpoints save-limit",
        "Training.EVAL_STEPS": "eval-every eval-interval eval-strategy evaluation-strategy val-steps steps-per-eval "
        "validation-steps eval-freq",
        "Training.SAMPLE_STEPS": "sample-every samples-every generate-every",
        "Training.EARLY_STOPPING_PATIENCE": "patience early-stopping early-stop",
        "Training.PACKING": "pack sample-packing group-by-length",
        "Training.GRADIENT_CHECKPOINTING": "checkpointing grad-checkpointing grad-checkpoint use-gradient-checkpointing",
        "Training.REPORT_TO": "wandb tensorboard trackio tracker logger log-to use-tensorboard",
        "Training.REPORT_PROJECT": "project tracker-project wandb-entity",
        "Training.REPORT_NAME": "run-name experiment-name wandb-name",
        "Quantization.LOAD_IN_4BIT": "4bit 4-bit load-4bit use-4bit qlora use-qlora int4 quantization-bit bits "
        "quantize-base bnb-4bit",
        "Quantization.QUANTIZATION_METHOD": "quant quantize quantization quantise quantisation quant-method quant-type "
        "gguf gguf-type outtype quantization-type q",
        "Quantization.KEEP_MERGED": "merge merged save-merged merge-adapter",
        "Quantization.KEEP_F16": "save-f16 f16",
        "Hardware.PRECISION": "dtype torch-dtype mixed-precision fp32 tf32 half",
        "Hardware.ENGINE": "backend unsloth use-unsloth",
        "Hardware.DEVICE": "gpu cuda cpu use-gpu use-cpu use-cuda no-cuda device-map gpu-id",
        "Hardware.NUM_THREADS": "threads cpu-threads omp-num-threads n-threads",
        "Hardware.NUM_PROCESSES": "gpus num-gpus n-gpus nproc nproc-per-node world-size num-devices",
        "Hardware.NUM_MACHINES": "nodes nnodes num-nodes machines",
        "Hardware.MACHINE_RANK": "node-rank rank-of-machine",
        "Hardware.MAIN_PROCESS_ADDRESS": "master-addr master-address rdzv-endpoint main-process-ip",
        "Hardware.SHARDING": "fsdp zero zero-stage shard cpu-offload offload",
        "Hardware.LINK_GBPS": "bandwidth link-speed network-speed gbps",
    }.items()
    for word in words.split()
}
# Words for what other flags and programs do.
DONE_BY: dict[str, str] = {
    word: by
    for by, words in {
        "--status": "status info state progress ps",
        "--follow": "follow log logs tail watch attach",
        "--stop": "stop kill cancel abort terminate",
        "--resume": "resume continue restart resume-from-checkpoint resume-from resume-training",
        "--check": "check dry-run dryrun validate verify plan preflight",
        "--history": "history list ls runs jobs",
        "--chat": "chat talk ask interactive",
        "--compare": "compare diff",
        "--detach": "detach background daemon nohup bg",
        "--fresh": "fresh",
        "--help": "help usage",
        "--config": "config config-file conf cfg settings ini config-path yaml c",
        "--output": "o",
        "--model": "m",
        "./export_ollama.sh": "export ollama deploy create-modelfile modelfile export-gguf to-ollama",
        "training/evaluate_model.py": "evaluate eval evaluation benchmark do-eval",
        "training/prepare_data.py": "prepare prepare-data preprocess",
        "training/convert_to_gguf.py": "convert convert-to-gguf",
        "./setup.sh": "setup install init",
    }.items()
    for word in words.split()
}
# What has no setting.
SAID: dict[str, str] = {
    word: text
    for text, words in {
        "every run's report.json names the versions of all that was used": "version versions",
        "./run.sh without a word trains": "train-model start run do-train",
        "8 bit is not there; LOAD_IN_4BIT loads in 4": "load-in-8bit 8bit 8-bit int8 load-8bit use-8bit",
        "the warm-up is given in steps: WARMUP_STEPS": "warmup-ratio warmup-proportion",
        "what is trained is always a LoRA adapter": "lora use-lora peft use-peft full-finetune finetuning-type full",
        "nothing is ever written over: every run has a folder of its own": "overwrite overwrite-output-dir force f",
        "nothing is asked on the way": "yes y no-input non-interactive",
        "the whole log is in training/finetune.log": "verbose debug quiet silent log-level",
        "for several GPUs there are NUM_PROCESSES and SHARDING = fsdp": "deepspeed",
        "LOAD_IN_4BIT = true is NF4 with double quantisation": "bnb-4bit-quant-type bnb-4bit-compute-dtype double-quant "
        "bnb-4bit-use-double-quant use-double-quant",
        "tokens are read from the environment (HF_TOKEN, WANDB_API_KEY)": "token hf-token hub-token api-key wandb-api-key "
        "use-auth-token",
    }.items()
    for word in words.split()
}
SECTION_WORDS: dict[str, str] = {
    word: section
    for section, words in {
        "Model": "base base-model basemodel llm general",
        "LoRA": "peft adapter lora-config loraconfig qlora",
        "Dataset": "data datasets rows corpus",
        "Training": "train trainer train-args training-args trainingarguments hyperparameters optim optimizer sft output "
        "logging wandb scheduler paths",
        "Quantization": "quant quantize quantisation gguf export bnb bitsandbytes ollama",
        "Hardware": "gpu device cuda cpu system machine distributed accelerate precision",
    }.items()
    for word in words.split()
}
assert set(SECTION_WORDS.values()) <= set(SECTIONS)


def is_taken(name: str) -> bool:
    """Whether a name can be given a value."""
    return plain(name) in TAKEN or plain(name) in IMPLIED


def is_switch(name: str) -> bool:
    """Whether a taken name is true or false (or auto), so that it may stand without a value."""
    name = plain(name)
    return name in IMPLIED or TABLE[TAKEN[name]].kind.startswith("bool")


def settings_of(name: str, value: str) -> list[tuple[str, str]]:
    """(Section.KEY, value) of each setting that a taken name and its value come to. Raises ValueError with what is allowed."""
    name = plain(name)
    if name in IMPLIED:
        if value.lower() not in IMPLIED[name]:
            raise ValueError("expected true or false")
        return list(IMPLIED[name][value.lower()])
    key = TAKEN[name]
    if name == "dataset-format":
        value = "auto" if value.lower() in FILE_FORMS else ROW_FORMS.get(value.lower(), value)
    return [(key, value), (STEPS, "0")] if key == EPOCHS else [(key, value)]


def is_direct(name: str, key: str) -> bool:
    """Whether the value that was given to a name is that of the setting itself."""
    return TAKEN.get(plain(name)) == key


def written(key: str, door: Door) -> str:
    """How a setting is written: --learning-rate, LEARNING_RATE or learning_rate."""
    if door == "key":
        return TABLE[key].key
    if door == "python":
        return IN_PYTHON.get(key, TABLE[key].key.lower())
    return {setting: flag for flag, setting in SETTING_FLAGS.items()}.get(key, f"--{plain(TABLE[key].key)}")


def hint(name: str, door: Door, section: str = "") -> str:
    """What to say of a name that is not taken: `; write X`, what there is instead, `; did you mean X?`, or nothing."""
    word = plain(name)
    key = MEANT.get(word) or (TAKEN.get(word) if door == "key" else None)
    if key is None and door == "flag" and not name.startswith("--"):
        key = TAKEN.get(word)  # -model
    if key is not None:
        place = f" in [{TABLE[key].section}]" if door == "key" and TABLE[key].section != section else ""
        return f"; write {written(key, door)}{place}"
    if door == "key" and word in IMPLIED:
        return "; write " + ", ".join(f"{pair[0].partition('.')[2]} = {pair[1]}" for pair in IMPLIED[word]["true"])
    if word in SAID:
        return f"; {SAID[word]}"
    if door == "flag" and word in DONE_BY:
        return f"; write {DONE_BY[word]}" if DONE_BY[word].startswith("--") else f"; {DONE_BY[word]} does that"
    return names.did_you_mean(name, _known(door, section))


def _known(door: Door, section: str) -> Iterable[str]:
    if door == "key":
        return [item.key for item in EVERY.values() if item.section == section]
    if door == "python":
        return [name.replace("-", "_") for name in (*TAKEN, *IMPLIED)]
    return [
        *SETTING_FLAGS,
        *SERVICE_FLAGS,
        *COMMANDS,
        *SWITCHES,
        "--config",
        "--set",
        "--help",
        *(f"--{n}" for n in (*TAKEN, *IMPLIED)),
    ]


def hint_for_section(name: str) -> str:
    """The same for a section of the file."""
    section = SECTION_WORDS.get(plain(name))
    return (
        f"; write [{section}]"
        if section
        else names.did_you_mean(name, EVERY_SECTION, f"there are {', '.join(EVERY_SECTION)}")
    )


def instead_of(word: str) -> str:
    """What to write where a command was given as a bare word: `./run.sh status`. Nothing where the word is none."""
    word = plain(word)
    if word in DONE_BY and len(word) > 1:
        by = DONE_BY[word]
        return f"write {shell.command('run.sh', by)}" if by.startswith("--") else f"{by} does that"
    return SAID.get({"train": "start"}.get(word, word), "") if word in ("version", "train", "start", "run") else ""


def wrong_form(form: str, file: str) -> str:
    """Why a file cannot be read in the form that --dataset-format names: its ending names another. Nothing where it can."""
    ending = file.rpartition(".")[2].lower()
    if form.lower() not in FILE_FORMS or ending not in FILE_FORMS or form[:4].lower() == ending[:4]:
        return ""
    return f"{file} is read as {ending}, as its ending says; rename the file, or leave this out"
