"""Which servers will write a run's functions and calls as they are trained: said before the training."""

from __future__ import annotations

from loguru import logger

from training.data import ChatTemplate

NO_TOOLS = (
    "{:,} rows offer or call tools: the chat template in merged/ and in the GGUF file writes them as they are trained, for Ollama "
    "0.30 and later and all that run that; the Modelfile's TEMPLATE, by which older Ollama writes prompts, knows none"
)

BY_NAME = (
    "{:,} rows offer or call tools: the Modelfile's TEMPLATE writes them as they are trained, for Ollama of every version, with "
    "parameters and arguments in the order of their names, in which it gets them (TOOL_FORM = own keeps the rows' order)"
)


def say(rows: int, template: ChatTemplate) -> None:
    """Log who will write the functions of so many rows as they are trained."""
    if template.tools_by_name:
        logger.info(BY_NAME, rows)
    else:
        logger.warning(NO_TOOLS, rows)
