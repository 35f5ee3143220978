"""The commands about runs: --status, --history, --follow, --stop, --chat, --compare, --whois, --resume, --detach."""

from training.control.commands import COMMANDS

__all__ = ["COMMANDS"]
