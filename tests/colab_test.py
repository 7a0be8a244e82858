"""The notebooks run, and say what the scripts beside them say."""

import json
import pathlib
import re

import pytest

from metamf_jax import parallel

SCRIPTS = sorted((pathlib.Path(__file__).parents[1] / "experiments" / "colab").glob("*.py"))


def cells_of(script: str) -> list[tuple[str, str]]:
    """(kind, source) of the cells of a script in percent format."""
    cells = []
    for cell in script.split("# %%")[1:]:
        mark, _, source = cell.partition("\n")
        kind = "markdown" if mark == " [markdown]" else "code"
        if kind == "markdown":
            source = re.sub("^# ?", "", source, flags=re.MULTILINE)
        cells.append((kind, source.strip("\n")))
    return cells


def test_there_are_four():
    assert len(SCRIPTS) == 4


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_in_step(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    cells = [(cell["cell_type"], "".join(cell["source"])) for cell in notebook["cells"]]
    assert cells == cells_of(path.read_text(encoding="utf-8")), (
        "run: jupytext --to ipynb --update experiments/colab/*.py"
    )
    assert not any(cell.get("outputs") for cell in notebook["cells"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_runs(path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "_devices", None)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "notebook"})
    assert capsys.readouterr().out
