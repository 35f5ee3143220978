"""What five public guides tell their readers to type, block by block. Where they say finetune/ or scripts/, it is training/ here.

{DATA} {VAL} {TEST}: data files; {OUT}: an output folder; {MODEL}: a base model; {RUN}: a run's folder.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """One command: the guide it is from, the program, and its arguments as they are typed."""

    guide: str
    program: str
    typed: str


BLOCKS = (
    Block("1 a Go host", "run.sh", "{DATA} {OUT} {MODEL} 3"),
    Block("1 a Go host", "run.sh", "{DATA} {OUT} Qwen/qwen3:0.6b-Instruct 3"),
    Block(
        "1 a Go host",
        "finetune.py",
        "--data {DATA} --output {OUT} --model {MODEL} --epochs 3 --batch-size 1 --learning-rate 2e-4 --max-length 512 --lora-r 8",
    ),
    Block("2 config.ini", "finetune.py", ""),
    Block("3 a course", "create_sample_data.py", "--output-dir {OUT}/sample"),
    Block(
        "3 a course",
        "prepare_data.py",
        "--input {DATA} --input-format json --format-type alpaca --output-dir {OUT} --output-name train",
    ),
    Block(
        "3 a course",
        "train_lora.py",
        "--base-model {MODEL} --train-data {DATA} --val-data {VAL} --output-dir {OUT} --epochs 3 --batch-size 4 "
        "--learning-rate 2e-4 --lora-r 8 --lora-alpha 16 --use-quantization",
    ),
    Block(
        "3 a course", "train_lora.py", "--base-model {MODEL} --train-data {DATA} --val-data {VAL} --test-data {TEST}"
    ),
    Block("3 a course", "evaluate_model.py", "--base-model {MODEL} --lora-model {OUT}/lora_adapter --interactive"),
    Block(
        "3 a course",
        "evaluate_model.py",
        "--base-model {MODEL} --lora-model {OUT}/lora_adapter --test-data {TEST} --output results.csv",
    ),
    *(
        Block(
            "3 a course",
            "convert_to_gguf.py",
            f"--model-path {{OUT}}/merged_model --quantization {kind} --create-modelfile --model-name my-model",
        )
        for kind in ("Q4_K_M", "Q5_K_M", "Q8_0")
    ),
    Block(
        "4 a service",
        "train_lora.py",
        "--base_model {MODEL} --dataset_path {DATA} --output_dir {OUT} --num_epochs 3 --batch_size 4 --learning_rate 2e-4",
    ),
    Block(
        "4 a service",
        "train_lora.py",
        "--base_model {MODEL} --dataset_path {DATA} --dataset_format json --gradient_accumulation_steps 4 --warmup_steps 1 "
        "--save_steps 1 --eval_steps 1 --max_grad_norm 1.0",
    ),
    Block(
        "5 a library",
        "train_lora.py",
        "--model-name {MODEL} --data-path {DATA} --output-dir {OUT} --lora-r 16 --lora-alpha 32 --lora-dropout 0.05 "
        "--batch-size 4 --num-train-epochs 3 --learning-rate 2e-4 --max-seq-length 2048 --save-steps 1 --logging-steps 1 "
        "--eval-steps 1 --bf16 --train-test-split 0.1",
    ),
    Block("5 a library", "train_lora.py", "--data-path {DATA} --use-wandb --wandb-project p --wandb-run-name first"),
    Block("5 a library", "train_lora.py", "--data-path {DATA} --fp16"),
)
