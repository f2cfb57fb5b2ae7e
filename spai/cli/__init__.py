"""The command line: one module a command, imported when it is called.

Each module turns options into one library call and shows the result; importing this package costs
only click, so that `spai --help` is quick.
"""

import importlib

import click

from spai._version import __version__

COMMANDS = {
    "infer": "Score the images of folders and CSVs.",
    "pretrain": "Learn the backbone from real images, without labels.",
    "train": "Train the spectral heads on labelled images.",
    "test": "Measure a model on labelled CSVs.",
    "calibrate": "Find thresholds for verdicts on known images.",
    "report": "Compute metrics and tables from score CSVs.",
    "tsne": "Draw images and patches by their vectors.",
    "export-onnx": "Write a model as ONNX files.",
    "validate-onnx": "Compare ONNX files with the model.",
    "weights": "List, download, verify and convert model files.",
}


class LazyGroup(click.Group):
    """A click group that imports `spai.cli.<command>` only when the command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the command names in the order of the help page."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return a command, or None when there is no such command."""
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"spai.cli.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="spai")
def main() -> None:
    """SPAI: tell AI-generated images from photographs, at any resolution.

    A score is the probability, from 0 to 1, that an image was generated. It is evidence, not proof.
    """
