"""`spai report`: metrics and tables from score CSVs, without a model."""

import logging
import platform
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import click

from spai._version import __version__
from spai.cli import options
from spai.files import file_sha256

log = logging.getLogger(__name__)


@options.command(name="report")
@options.score_file_options
@click.option("--output", type=options.PATH, required=True, help="The folder for the results.")
def command(
    files: tuple[Path, ...],
    real: tuple[Path, ...],
    generated: tuple[Path, ...],
    score_column: str,
    output: Path,
) -> None:
    """Compute metrics and tables from score CSVs, without the model.

    Each CSV is a data set. When some hold only real and others only generated images, every
    generator is also compared with every real source.
    """
    from spai.report.results import (
        RESULT_FILES,
        check_not_overwritten,
        read_scores,
        write_results,
    )

    inputs = (*files, *real, *generated)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: is a file; give a folder with --output")
    check_not_overwritten(output, inputs, RESULT_FILES)
    scores = read_scores(files, column=score_column, real=real, generated=generated)
    results = write_results(output, scores, _run_facts(inputs, score_column))
    failed = sum(metrics.errors for metrics in results.metrics.values())
    sets = len(results.metrics)
    log.info("data sets: %d, images: %d, without a score: %d", sets, len(scores), failed)
    if results.cross is not None and results.cross.average is not None:
        log.info("average AUC of the generators: %.1f %%", 100 * results.cross.average)
    click.echo(output / "report.md")


def _run_facts(inputs: Iterable[Path], score_column: str) -> dict[str, object]:
    return {
        "command": options.command_line(),
        "score_column": score_column,
        "inputs": [{"file": str(file), "sha256": file_sha256(file)} for file in inputs],
        "versions": {
            "spai": __version__,
            "python": platform.python_version(),
            **{name: version(name) for name in ("numpy", "pandas", "scikit-learn")},
        },
    }
