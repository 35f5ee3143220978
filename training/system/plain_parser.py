"""argparse whose errors look like those of ./run.sh: what is wrong with the arguments, and where all of them are told."""

from __future__ import annotations

import argparse
from typing import NoReturn

from training.errors import UserError
from training.system import privacy


def wrong(message: str, program: str) -> UserError:
    """What is wrong with the arguments of one of the programs, and how to see all of them."""
    return UserError([message, f"{program} --help lists all arguments"], title="wrong arguments")


class Parser(argparse.ArgumentParser):
    """A parser whose errors are told plainly, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        privacy.tell(wrong(message, self.prog))
        raise SystemExit(UserError.exit_code)
