"""Writes the notebooks (.ipynb) of this folder from the scripts in percent format beside them.

python -m experiments.colab.notebooks
"""

import json
import pathlib
from typing import Any

from metamf_jax.runs.files import write_text

FOLDER = pathlib.Path(__file__).parent
_MARK = "# %%"


def scripts() -> list[pathlib.Path]:
    """The scripts that are notebooks."""
    held = sorted(FOLDER.glob("*.py"))
    return [path for path in held if path.read_text(encoding="utf-8").startswith(_MARK)]


def to_notebook(script: str) -> dict[str, Any]:
    """A notebook, as the JSON of its file, from a script in percent format."""
    cells = []
    for number, block in enumerate(script.split(_MARK)[1:]):
        head, _, body = block.partition("\n")
        lines = body.strip("\n").split("\n")
        kind = "markdown" if head.strip() == "[markdown]" else "code"
        if kind == "markdown":
            lines = [line.removeprefix("#").removeprefix(" ") for line in lines]
        source = [line + "\n" for line in lines[:-1]] + lines[-1:]
        cell = {"cell_type": kind, "id": f"cell-{number}", "metadata": {}, "source": source}
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {
        "cells": cells,
        "metadata": {"kernelspec": kernel, "language_info": {"name": "python"}},
        "nbformat": 4,
        "nbformat_minor": 5,
    }


def main() -> None:
    for path in scripts():
        notebook = to_notebook(path.read_text(encoding="utf-8"))
        write_text(path.with_suffix(".ipynb"), json.dumps(notebook, indent=1) + "\n")


if __name__ == "__main__":
    main()
