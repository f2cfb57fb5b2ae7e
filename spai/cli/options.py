"""What the commands share: option types, error handling, logging."""

import contextlib
import functools
import logging
import shlex
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import click


class NonEmptyPath(click.Path):
    """A path; an empty one, such as of an unset variable, would mean the current folder."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path, or fail on an empty one."""
        if value == "":
            self.fail("is empty", param, ctx)
        return super().convert(value, param, ctx)


FILE = NonEmptyPath(exists=True, dir_okay=False, path_type=Path)
PATH = NonEmptyPath(path_type=Path)


class UserError(click.ClickException):
    """One line on stderr and exit code 2: a mistake in what was asked."""

    exit_code = 2


class Failure(click.ClickException):
    """One line on stderr and exit code 1: what was asked could not be done."""

    exit_code = 1


def command_line() -> str:
    """Return the command that started this process, as a shell would take it."""
    return shlex.join(["spai", *sys.argv[1:]])


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
            for library in ("PIL", "matplotlib", "filelock", "fontTools", "torch"):
                logging.getLogger(library).setLevel(logging.WARNING)
            try:
                _check_current_folder()
                with _terminated_like_interrupted():
                    return function(*args, **kwargs)
            except (ValueError, OSError, RuntimeError) as error:
                if debug:
                    raise
                kind = UserError if isinstance(error, ValueError) else Failure
                raise kind(str(error) or type(error).__name__) from error

        with_debug = click.option("--debug", is_flag=True, help="Show tracebacks and debug logs.")
        return click.command(**settings)(with_debug(run))

    return decorate


def _check_current_folder() -> None:
    try:
        Path.cwd()
    except OSError as error:
        raise ValueError("the current folder does not exist any more; change to another") from error


@contextlib.contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Let SIGTERM end the block like Ctrl-C, so that it can say what was kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    earlier = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, earlier)


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


def model_file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the model."""
    return _with(
        function,
        click.option(
            "--model",
            help="A model file, or the name of a registered one (see `spai weights list`).  "
            "[default: ./weights/spai.pth, else the downloaded copy, else the bundled mini]",
        ),
        click.option(
            "--cfg",
            type=FILE,
            help="A YAML configuration.  [default: the one in the model file, else the published]",
        ),
        config_override_option,
    )


def model_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the model and what runs it."""
    return _with(
        function,
        model_file_options,
        click.option(
            "--device", default="auto", show_default=True, help="auto, cpu, cuda, cuda:N or mps."
        ),
        click.option(
            "--precision",
            type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
            default="auto",
            show_default=True,
            help="Of the patch encoder; auto is fp16 on CUDA and fp32 elsewhere.",
        ),
        click.option("--compile", "compile_model", is_flag=True, help="Use torch.compile."),
        click.option(
            "--backend",
            type=click.Choice(["auto", "torch", "openvino", "onnxruntime"]),
            default="auto",
            show_default=True,
            help="What runs the patch encoder; auto is OpenVINO on the CPU where it is installed "
            "and pays (the model was converted before, or there is much to score), else torch.",
        ),
    )


def image_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say how images are read."""
    return _with(
        function,
        click.option("--lmdb", type=PATH, help="Read images from an LMDB store."),
        click.option(
            "--resize-to",
            type=click.IntRange(min=1),
            help="Shrink images so that the longer side is at most N pixels.  [default: never]",
        ),
        click.option(
            "--workers",
            type=click.IntRange(min=0),
            help="Decoding processes, 0 for none.  [default: min(4, cores - 1) on CPU, "
            "min(8, cores) with a GPU]",
        ),
        click.option(
            "--max-pixels",
            type=click.IntRange(min=1),
            default=500_000_000,
            show_default=True,
            help="Larger images become an error row.",
        ),
    )


def test_csv_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name labelled data sets."""
    return _with(
        function,
        click.option(
            "--test-csv",
            "csvs",
            type=PATH,
            multiple=True,
            required=True,
            help="A data set: a CSV with columns `image` and `class` (0 real, 1 generated); "
            "repeatable.",
        ),
        click.option(
            "--test-csv-root-dir",
            "roots",
            type=PATH,
            multiple=True,
            help="What image paths are relative to: once for all CSVs, or once for each.  "
            "[default: each CSV's folder]",
        ),
    )


def score_file_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that name score CSVs and the class of their images."""
    return _with(
        function,
        click.option(
            "--scores",
            "files",
            type=PATH,
            multiple=True,
            help="A CSV of `infer` or `test`; repeatable. Its class is in the column `class`, or "
            "in a file name that begins with real_ or fake_.",
        ),
        click.option("--real", type=PATH, multiple=True, help="A score CSV of real images only."),
        click.option(
            "--generated", type=PATH, multiple=True, help="A score CSV of generated images only."
        ),
        click.option(
            "--score-column",
            default="spai",
            show_default=True,
            help="The column of scores. A scores.csv of `test` needs no name.",
        ),
    )


def _with(function: Callable[..., Any], *decorators: Callable[..., Any]) -> Callable[..., Any]:
    for decorate in reversed(decorators):
        function = decorate(function)
    return function
