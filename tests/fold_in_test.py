"""Rows and columns that come after the draws: their conditionals, and the binaries' answers."""

import csv

import numpy as np
import pytest
import scipy.sparse

from experiments import factorize, predict
from experiments.sampling import sample
from metamf_jax.posterior import fold_in, pattern
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.fold_in import Recipe
from metamf_jax.posterior.given import none_given
from metamf_jax.posterior.hyperprior import Hyperprior
from tests.experiments_test import launch

LEVELS, OFFSETS = 3, (-2.0, 0.0, 2.0)


def test_conditional_of_a_row():
    """Against the equation, one draw at a time; without entries, against the prior."""
    rng = np.random.default_rng(0)
    root = rng.normal(size=(400, 3, 3))
    precision = root @ root.mT + 2 * np.eye(3)
    prior = Hyperprior(rng.normal(size=(400, 5, 3)), precision, np.ones((400, 2)))
    v, shares = rng.normal(size=(400, 5, 3)), rng.gamma(5, 0.2, (400, 5))
    alpha = rng.gamma(5, 0.2, 400)
    rows = np.zeros((400, 4, 3)), np.ones((400, 4))
    draws = Draws(rows[0], v, rows[1], shares, alpha, prior, prior)
    side, _ = pattern.pattern_features(*np.nonzero(np.tri(4, 5)), (4, 5), 2)
    entries = scipy.sparse.csr_array(([0.5, -1.0], ([0, 0], [1, 3])), shape=(2, 5))
    recipe = Recipe(side, none_given(4), 0.0)
    found = fold_in.further_rows(draws, 0, recipe, np.zeros((2, 0), np.float32), entries)
    phi = np.append(1, pattern.of_further_rows(side, scipy.sparse.csr_array([[0, 1, 0, 1, 0]]))[0])
    phi[1:3] = 0  # Counts are not yet known.
    ends = []
    for s in range(400):
        t = np.column_stack([v[s, [1, 3], :-1], np.ones(2)])
        weight = alpha[s] * shares[s, [1, 3]]
        a = precision[s] + (t.T * weight) @ t
        h = precision[s] @ (phi @ prior.coefficients[s])
        h += t.T @ (weight * (np.array([0.5, -1.0]) - v[s, [1, 3], -1]))
        np.testing.assert_allclose(found.mean[s, 0], np.linalg.solve(a, h), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(found.mean[s, 1], prior.coefficients[s, 0], rtol=1e-5)
        for n, of_row in enumerate((a, precision[s])):
            ends.append(np.linalg.cholesky(of_row).T @ (found.drawn[s, n] - found.mean[s, n]))
    # Whitened, what is drawn about the means is standard normal.
    ends = np.reshape(ends, (400, 2, 3))
    np.testing.assert_allclose(ends.mean(axis=0), 0, atol=0.2)
    for n in (0, 1):
        np.testing.assert_allclose(np.cov(ends[:, n].T), np.eye(3), atol=0.25)
    np.testing.assert_array_equal(found.shares, 1)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Ratings decided by rows' levels and columns' numbers; row r0 to r5 and column 0 have none."""
    folder = tmp_path_factory.mktemp("features")
    rng = np.random.default_rng(0)
    numbers = rng.normal(size=20)
    truth = np.array(OFFSETS)[np.arange(66) % LEVELS][:, None] + numbers
    noisy = truth + 0.3 * rng.standard_normal(truth.shape)
    lines = [
        f"r{n},{m},{noisy[n, m]:.3f}"
        for n, m in np.argwhere(rng.random(truth.shape) < 0.4)
        if n >= 6 and m
    ]
    (folder / "ratings.csv").write_text("\n".join(["user,item,rating", *lines]))
    users = [f"r{n},level{n % LEVELS}" for n in range(66)]
    (folder / "users.csv").write_text("\n".join(["user,level", *users]))
    items = [f"{m},{x:.4f}" for m, x in enumerate(numbers)]
    (folder / "items.csv").write_text("\n".join(["item,number", *items]))
    return folder, truth


@pytest.fixture(scope="module")
def run(world):
    """The configuration and the workdir of a factorization with both tables."""
    folder, _ = world
    config = sample.Config(
        dataset=str(folder / "ratings.csv"),
        rank=2,
        draws=20,
        burn_in=10,
        pattern_features=0,
        row_features=str(folder / "users.csv"),
        column_features=str(folder / "items.csv"),
    )
    sample.run(config, folder / "run")
    return config, folder / "run"


def answers(folder, workdir, pairs, *flags):
    (folder / "pairs.csv").write_text("\n".join(["user,item", *(f"{n},{m}" for n, m in pairs)]))
    out = folder / "out.csv"
    asked = f"--factors={workdir}", f"--pairs={folder / 'pairs.csv'}", f"--output={out}"
    ended = launch(predict, *asked, *flags)
    assert ended.code == 0, ended.err
    with out.open(newline="") as file:
        head, *lines = csv.reader(file)
    return {name: [line[n] for line in lines] for n, name in enumerate(head)}


def test_what_has_no_ratings_is_answered_by_its_features(world, run):
    folder, truth = world
    pairs = [(f"r{n}", m) for n in range(6) for m in range(20)]
    tables = f"--row_features={folder / 'users.csv'}", f"--column_features={folder / 'items.csv'}"
    told = answers(folder, run[1], pairs, *tables)
    untold = answers(folder, run[1], pairs)
    assert told["known"] == ["neither" if m == 0 else "column" for _, m in pairs]

    def error(found):
        return np.sqrt(np.mean((np.array(found["value"], float) - truth[:6].ravel()) ** 2))

    assert error(told) < 0.3 < 1.4 < error(untold)


def test_ratings_fold_rows_and_columns_in(world, run):
    folder, truth = world
    new = [f"r{n},{m},{truth[n, m]:.3f}" for n in range(6) for m in range(1, 9)]
    new += [f"r{n},0,{truth[n, 0]:.3f}" for n in range(6, 30)]
    text = "\n".join(["user,item,rating", *new, "r7,1,0", "who,what,0"])
    (folder / "new.csv").write_text(text)
    pairs = [(f"r{n}", m) for n in range(6) for m in range(9, 20)] + [("r60", 0), ("r61", 0)]
    found = answers(folder, run[1], pairs, f"--fold_in={folder / 'new.csv'}", "--std")
    expected = [truth[int(n[1:]), m] for n, m in pairs]
    errors = np.array(found["value"], float) - expected
    assert np.sqrt((errors**2).mean()) < 0.35
    assert max(map(float, found["std"])) < 1.2


def test_new_rows_and_columns_are_among_the_best(world, run):
    folder, _ = world
    tables = f"--row_features={folder / 'users.csv'}", f"--column_features={folder / 'items.csv'}"
    out = folder / "best.csv"
    (folder / "rows.txt").write_text("user\nr2\n")
    ended = launch(
        predict,
        *(f"--factors={run[1]}", "--top=20", f"--rows={folder / 'rows.txt'}"),
        *(f"--output={out}", *tables),
    )
    assert ended.code == 0, ended.err
    with out.open(newline="") as file:
        _, *lines = csv.reader(file)
    assert {line[1] for line in lines} == {str(m) for m in range(20)}
    values = [float(line[2]) for line in lines]
    assert values == sorted(values, reverse=True)


def test_two_devices_draw_the_same_bytes(run, tmp_path):
    config, workdir = run
    sample.run(config, tmp_path, num_devices=2)
    both = [(folder / "draws.safetensors").read_bytes() for folder in (workdir, tmp_path)]
    assert both[0] == both[1]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--row_features=gone.csv",), "gone.csv: no such file"),
        (("--row_features=items.csv",), "expected a column 'level' of kind category"),
        (("--fold_in=ratings.csv",), "--fold_in has no rating of a new row by known columns"),
    ],
)
def test_mistakes(flags, message, world, run, tmp_path, monkeypatch):
    monkeypatch.chdir(world[0])
    (world[0] / "some.csv").write_text("user,item\nr1,2\n")
    given = f"--factors={run[1]}", "--pairs=some.csv", f"--output={tmp_path / 'out.csv'}"
    ended = launch(predict, *given, *flags)
    assert ended.code == 1
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_table_of_others_ends_the_factorization_before_it_starts(world, tmp_path):
    (world[0] / "others.csv").write_text("user,age\nx,1\ny,2\n")
    ended = launch(
        factorize,
        *("--solver=gibbs", f"--input={world[0] / 'ratings.csv'}"),
        *(f"--row_features={world[0] / 'others.csv'}", f"--workdir={tmp_path / 'run'}"),
    )
    assert ended.code == 1
    assert "others.csv: none of its 2 ids, such as 'x', stands in the ratings" in ended.err
    assert not (tmp_path / "run").exists()
