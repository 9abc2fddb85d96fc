"""Prints what the pyproject.toml of this folder asks for, with the extras that are named, before the code is there."""

import sys
import tomllib
from pathlib import Path

project = tomllib.loads(Path("pyproject.toml").read_text())["project"]
for requirement in (*project["dependencies"], *(r for e in sys.argv[1:] for r in project["optional-dependencies"][e])):
    print(requirement)
