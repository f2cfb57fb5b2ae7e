"""Put the bundled model into wheels; everything else is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

MODEL = Path("weights") / "spai-mini.safetensors"


class BuildWithModel(build_py):
    """Copies the model beside the modules; an editable installation finds it where it is."""

    def run(self) -> None:
        """Build, then copy."""
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib) / "spai" / "bundled" / MODEL.name
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(MODEL, target)


setup(cmdclass={"build_py": BuildWithModel})
