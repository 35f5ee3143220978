"""Fine-tune a chat model and export it to Ollama. `finetune.py` tells the story; each stage is one module.

The data flows one way, and so do the imports:
settings -> environment -> dataset -> model -> train -> evaluate -> export -> report.
"""
