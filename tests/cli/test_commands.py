"""What holds for every command."""

import subprocess
import sys

import pytest

from spai.cli import COMMANDS

HEAVY = {"torch", "pandas", "numpy", "sklearn", "matplotlib", "PIL"}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_imports_no_heavy_library(command):
    code = (
        "import sys, spai.cli\n"
        "try:\n"
        f"    spai.cli.main([{command!r}, '--help'])\n"
        "finally:\n"
        f"    print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stderr == "[]\n"
    assert result.stdout.startswith("Usage: ")
