"""The binary that learns the prior of one large matrix."""

import dataclasses
import json

import numpy as np
import pytest

from experiments import learn_prior
from metamf_jax.factorization import pattern_prior
from metamf_jax.runs.run_log import read_metrics

SMOKE = learn_prior.PRESETS["smoke"]


def test_it_learns_from_synthetic_matrices_and_says_so(tmp_path):
    learn_prior.run(SMOKE, tmp_path / "run", output=tmp_path / "copy.json")
    learned = pattern_prior.load(tmp_path / "run" / "prior.json")
    assert learned == pattern_prior.load(tmp_path / "copy.json")
    assert learned.saw.startswith("2 synthetic rating matrices, ")
    lines = read_metrics(tmp_path / "run")
    assert [line["step"] for line in lines] == [1, 2, 3]
    assert lines[-1]["held_out"] < lines[0]["held_out"]
    results = json.loads((tmp_path / "run" / "summary.json").read_text())["results"]
    assert results["strengths"] == list(learned.strengths) == [1.0, 1.0]
    assert learned.powers == (0.5, 0.5)
    with_precisions = dataclasses.replace(SMOKE, precisions=True)
    learn_prior.run(with_precisions, tmp_path / "precisions")
    assert pattern_prior.load(tmp_path / "precisions" / "prior.json").strengths != (1.0, 1.0)


def test_it_learns_from_sets(tmp_path):
    rng = np.random.default_rng(0)
    cells = sorted({(int(n), int(m)) for n, m in rng.integers(0, 30, (400, 2))})
    path = tmp_path / "ratings.csv"
    path.write_text("\n".join(f"u{n},i{m},{1 + (n + m) % 5}" for n, m in cells))
    config = dataclasses.replace(SMOKE, sets=(str(path),), entries=200, steps=1)
    matrices = learn_prior.matrices(config, None)
    assert len(matrices) == 2
    held = sum(len(matrix.held_out.values) for matrix in matrices)
    assert 0.2 * 400 < held < 0.5 * len(cells) * 2
    assert abs(np.mean(matrices[0].train.values)) < 1e-6
    learn_prior.run(config, tmp_path / "run")
    assert "2 parts of ratings.csv" in pattern_prior.load(tmp_path / "run" / "prior.json").saw
    missing = dataclasses.replace(config, sets=("ml100",))
    with pytest.raises(ValueError, match="unknown data set 'ml100'"):
        learn_prior.run(missing, tmp_path / "wrong")
