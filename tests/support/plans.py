"""Base models, figures of rows, and plans: real ones, of which a test fills in what it is about."""

from __future__ import annotations

from pathlib import Path

from training.base_model import BaseModel
from training.data import ChatTemplate, Data
from training.data.tokenising import Lengths, Summary
from training.plan import Plan
from training.settings import Settings
from training.system.this_machine import Machine

CPU = Machine("3.11", "Linux", "a CPU", 2, "amx_bf16", 16 * 10**9, 12 * 10**9, (), None, {})


def a_base_model(
    config: dict[str, object] | None = None, parameters: int = 1, path: Path = Path("nowhere"), name: str = "a model"
) -> BaseModel:
    """A base model in a local folder, which need not be there."""
    return BaseModel(
        name=name, path=path, kind="folder", revision=None, config=config or {}, parameters=parameters, max_length=None
    )


def a_summary(longest: int) -> Summary:
    """The figures of one row of `longest` tokens."""
    lengths, none = Lengths(*[longest] * 4), Lengths(0, 0, 0, 0)
    return Summary(
        sequences=1, tokens=longest, trained_tokens=longest, cut=0, prompt=none, answer=lengths, total=lengths, example=""
    )  # fmt: skip


def a_plan(settings: Settings, **parts: object) -> Plan:
    """A plan on a machine without cards. Tokenizer and rows are left out, for they take seconds to load."""
    data = Data(
        train=None, validation=None, test=None, rejected=[], warnings=[], notes=[], sha256={}, counts={}, plain=False
    )  # fmt: skip
    known = {
        "machine": CPU, "base": a_base_model(), "tokenizer": None, "template": ChatTemplate("", "a test"), "data": data,
        "train": None, "validation": None, "test": None, "summary": a_summary(100), "rejected": [], "steps": 10,
        "disk": {}, "memory": {},
    }  # fmt: skip
    return Plan(settings=settings, **{**known, **parts})
