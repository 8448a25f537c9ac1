"""The one thing that pyproject.toml cannot say: an installed package has the folder conf/ inside itself."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py


class WithConf(build_py):
    """Copies conf/ into the built package; an editable install reads it where it lies."""

    def run(self):
        super().run()
        if not self.editable_mode:
            target = Path(self.build_lib, "diffusion_lab", "conf")
            shutil.rmtree(target, ignore_errors=True)  # of an earlier build
            shutil.copytree("conf", target)


setup(cmdclass={"build_py": WithConf})
