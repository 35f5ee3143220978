"""The name of a base model becomes a local Hugging Face folder: from the Hub, a folder, a .gguf file or the embedded
model.
"""

from training.base_model.model_tokenizer import load_tokenizer
from training.base_model.sources import BaseModel, Peek, door, locate, peek

__all__ = ["BaseModel", "Peek", "door", "load_tokenizer", "locate", "peek"]
