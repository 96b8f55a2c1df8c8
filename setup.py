"""The top-level folders install under one import name: ``train/`` is ``farside.train``, and so on.

``farside/`` holds committed symlinks to the folders, so a checkout, an editable install, a wheel and mypy
all see the same tree.
"""

from setuptools import find_packages, setup

FOLDERS = ("configs", "data", "parallel", "rl", "train")

packages = ["farside", "farside.exchange", "farside.launch", "farside.report"]
for folder in FOLDERS:
    packages += [f"farside.{folder}"] + [f"farside.{folder}.{name}" for name in find_packages(folder)]

setup(
    packages=packages,
    package_data={
        "farside": ["py.typed"],
        "farside.configs": ["*.yaml", "*/*.yaml"],
        "farside.data": ["corpora/*/*.txt", "corpora/*/*.md"],
    },
)
