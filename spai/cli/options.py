"""What the commands share: option types, error handling, logging."""

import functools
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
PATH = click.Path(path_type=Path)


class UserError(click.ClickException):
    """One line on stderr and exit code 2: a mistake in what was asked."""

    exit_code = 2


class Failure(click.ClickException):
    """One line on stderr and exit code 1: what was asked could not be done."""

    exit_code = 1


def command(**settings: Any) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a click command that reports a user's mistake in one line.

    ValueError is a user's mistake (exit 2); OSError and RuntimeError are failures (exit 1). The
    added option `--debug` shows the traceback instead.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def run(*args: Any, debug: bool, **kwargs: Any) -> Any:
            logging.basicConfig(
                level=logging.DEBUG if debug else logging.INFO,
                format="%(message)s",
                stream=sys.stderr,
                force=True,
            )
            for library in ("PIL", "matplotlib", "filelock", "fontTools"):
                logging.getLogger(library).setLevel(logging.WARNING)
            try:
                return function(*args, **kwargs)
            except (ValueError, OSError, RuntimeError) as error:
                if debug:
                    raise
                kind = UserError if isinstance(error, ValueError) else Failure
                raise kind(str(error) or type(error).__name__) from error

        with_debug = click.option("--debug", is_flag=True, help="Show tracebacks and debug logs.")
        return click.command(**settings)(with_debug(run))

    return decorate


def config_override_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--opt KEY VALUE`, repeatable."""
    return click.option(
        "--opt",
        "overrides",
        nargs=2,
        multiple=True,
        metavar="KEY VALUE",
        help="Override a configuration key; the value is a Python literal.",
    )(function)
