"""Fine-tune a chat model and export it to Ollama. `finetune.py` tells the story on one screen: begin there.

The rooms, from the ground up. Each imports only from floors below its own (tests/test_layers.py), from outside through
its face, the `__init__.py`, or a module named:

   1  errors  the ways to fail, and their exit codes
   2  system  files, log, signals, processes, this machine; import its modules, it has no face
   3  llama  llama.cpp in a process of its own; GGUF files
   3  settings  config.ini and the command line become one frozen Settings, or all their problems at once
   3  hubs  the Hugging Face Hub and ModelScope: what stands there, and its files on this machine
   3  ollama  Modelfile and Go template; a live Ollama
   3  create_sample_data  a script: small files in every format that is read
   4  base_model  a name becomes a local Hugging Face folder: from a hub, a folder, a .gguf file, the embedded model
   4  chats  exports of chat programs become conversations
   4  fast_cpu  training by hand on a CPU: kernels.c, attention.c
   5  data  rows become conversations, and these ids and labels
   6  runs  a run's directory: status, checkpoints, what training hands over
   6  prepare_data  a script: clean, deduplicate and split a file
   7  evaluation  base against tuned: losses, answers, divergence; talks
   8  train  model and rows become an adapter
   8  to_gguf  the adapter becomes a merged model, and that GGUF files
   8  evaluate_model  a script: measure a model, or talk to it
   9  checks  is what was made what was trained?
  10  plan  everything short of training: does it fit, how long, what was chosen and why
  10  convert_to_gguf  a script: any Hugging Face folder as GGUF files
  11  report  report.json, report.md, report.html
  11  distributed  several cards, several machines
  12  pipeline  the stages of a run, one after the other
  12  control  --status, --follow, --stop, --chat, --resume, --detach
  13  proving  --prove: both engines side by side, and which to take
  13  export  a script: from the adapter to files that Ollama runs
  13  to_ollama  a script: a run's model goes into a live Ollama, and is proved there
  13  library  what Python is given: settings by name, a run as a process of its own, answers
  14  api  the door for Python; its names are handed on below
  14  finetune  a script: the whole of it
  14  train_lora  a script: the same under the name that guides use
  15  service  ./run.sh --serve: a page and an HTTP service; it starts runs as programs

The data flows settings -> base_model, data -> train -> evaluation -> to_gguf -> checks -> report. In two places the
imports point the other way: a plan asks the engines what they will need and has llama.cpp read the rows as the checks
do, so it stands above training, conversion and checks; training measures its losses, so evaluation stands below it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.api import (
        FinetuneError,
        FineTuningConfig,
        FineTuningRun,
        MachineError,
        RunError,
        Stopped,
        UserError,
        generate_text,
        load_model_and_tokenizer,
        run_fine_tuning,
    )

__all__ = [
    "FineTuningConfig",
    "FineTuningRun",
    "FinetuneError",
    "Stopped",
    "MachineError",
    "RunError",
    "UserError",
    "generate_text",
    "load_model_and_tokenizer",
    "run_fine_tuning",
]


def __getattr__(name: str) -> object:
    """The names of api.py, when one of them is first asked for: the programs here import this package, too."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module("training.api"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
