"""The notebooks run, and say what the scripts beside them say."""

import json

import pytest

from experiments.colab import notebooks
from metamf_jax import parallel


def test_there_are_three():
    assert len(notebooks.scripts()) == 3


@pytest.mark.parametrize("path", notebooks.scripts(), ids=lambda path: path.stem)
def test_in_step(path):
    notebook = json.loads(path.with_suffix(".ipynb").read_text(encoding="utf-8"))
    assert notebook == notebooks.to_notebook(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("path", notebooks.scripts(), ids=lambda path: path.stem)
def test_runs(path, monkeypatch, capsys):
    monkeypatch.setattr(parallel, "_devices", None)
    exec(compile(path.read_text(encoding="utf-8"), str(path), "exec"), {"__name__": "notebook"})
    assert capsys.readouterr().out
