"""The prediction binary as a user runs it."""

import csv
import gzip

import numpy as np
import pytest

from experiments import predict
from metamf_jax.factorization.factor_file import save_factors
from metamf_jax.posterior import draws_file, entry_effects, pattern
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.fold_in import Recipe
from metamf_jax.posterior.given import none_given
from metamf_jax.posterior.hyperprior import Hyperprior
from metamf_jax.posterior.predictive import Scale
from metamf_jax.types import Factors
from tests.experiments_test import launch

ROWS = np.array(["ann", "bob", "007"], object)
COLUMNS = np.array([10, 20, 30, 40])


@pytest.fixture
def factors(tmp_path):
    """Saves three rows and four columns of factors; the folder is that of the test."""
    rng = np.random.default_rng(0)
    made = Factors(rng.normal(size=(3, 2)).astype("f"), rng.normal(size=(4, 2)).astype("f"))
    save_factors(tmp_path / "factors.safetensors", made, ROWS, COLUMNS)
    return made


def run(folder, *arguments):
    ended = launch(predict, f"--factors={folder}", *arguments)
    assert ended.code == 0, ended.err
    return ended


def table(path):
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", newline="") as file:
        return list(csv.reader(file, delimiter="\t" if ".tsv" in path.name else ","))


def test_pairs_come_back_in_order_and_the_unknown_is_flagged(factors, tmp_path):
    asked = [("007", "30"), ("ann", "10"), ("eve", "20"), ("bob", "99"), ("eve", "99")]
    (tmp_path / "pairs.csv").write_text("user,item\n" + "".join(f"{n},{m}\n" for n, m in asked))
    ended = run(
        tmp_path, f"--pairs={tmp_path / 'pairs.csv'}", f"--output={tmp_path / 'out.tsv.gz'}"
    )
    assert "5 cells; column unknown 1, row unknown 1, both unknown 1" in ended.out
    lines = table(tmp_path / "out.tsv.gz")
    assert lines[0] == ["row", "column", "value", "known"]
    assert [(n, m) for n, m, _, _ in lines[1:]] == asked
    assert [known for *_, known in lines[1:]] == ["both", "both", "column", "row", "neither"]
    dense = np.float64(factors.u) @ factors.v.T
    expected = [dense[2, 2], dense[0, 0], dense[:, 1].mean(), dense[1].mean(), dense.mean()]
    np.testing.assert_allclose([float(x) for _, _, x, _ in lines[1:]], expected, rtol=1e-5)


def test_top_leaves_cells_out(factors, tmp_path):
    (tmp_path / "rows.txt").write_text("user\nbob\neve\n")
    (tmp_path / "seen.csv").write_text("user,item,rating\nbob,20,3\neve,10,1\nann,30,5\nbob,77,1\n")
    out = tmp_path / "out.csv"
    run(
        tmp_path / "factors.safetensors",
        "--top=3",
        f"--rows={tmp_path / 'rows.txt'}",
        f"--exclude={tmp_path / 'seen.csv'}",
        f"--output={out}",
    )
    lines = table(out)[1:]
    dense = factors.u @ factors.v.T
    for name, values, left, known in (
        ("bob", dense[1], [0, 2, 3], "both"),
        ("eve", dense.mean(0), [1, 2, 3], "column"),
    ):
        mine = [line for line in lines if line[0] == name]
        order = sorted(left, key=lambda m, values=values: -values[m])
        assert [int(line[1]) for line in mine] == [10 * (m + 1) for m in order]
        np.testing.assert_allclose([float(x[2]) for x in mine], values[order], rtol=1e-5)
        assert {line[3] for line in mine} == {known}
    run(tmp_path, "--top=2", f"--output={out}")
    assert [line[0] for line in table(out)[1:]] == ["ann", "ann", "bob", "bob", "007", "007"]


def test_a_libmf_model_answers_alike(factors, tmp_path):
    model, out = tmp_path / "model.txt", tmp_path / "out.csv"
    refused = launch(predict, f"--factors={tmp_path}", f"--libmf_output={model}")
    assert refused.code == 1
    assert "the 3 rows have such ids as 'ann'" in refused.err
    assert not model.exists()
    run(tmp_path, f"--libmf_output={model}", "--libmf_numbers=order")
    assert table(tmp_path / "model.txt.rows.csv") == [
        ["number", "id"],
        *([str(n), name] for n, name in enumerate(ROWS)),
    ]
    (tmp_path / "pairs.csv").write_text("2,1\n0,3\n")
    run(model, f"--pairs={tmp_path / 'pairs.csv'}", f"--output={out}")
    dense = factors.u @ factors.v.T
    got = [float(line[2]) for line in table(out)[1:]]
    np.testing.assert_allclose(got, [dense[2, 1], dense[0, 3]], rtol=1e-5)


@pytest.fixture
def draws(tmp_path):
    """Saves 50 draws of three rows and four columns; the folder is that of the test."""
    rng = np.random.default_rng(0)

    def normal(*shape):
        return rng.normal(size=(50, *shape)).astype("f")

    def positive(*shape):
        return rng.gamma(9, 1 / 9, size=(50, *shape)).astype("f")

    root = normal(3, 3)
    prior = Hyperprior(normal(3, 3), root @ root.mT + np.eye(3, dtype="f"), positive(1))
    made = Draws(
        normal(3, 3) + normal(3, 3)[:1],
        normal(4, 3) + normal(4, 3)[:1],
        positive(3),
        positive(4),
        4 * positive(),
        prior,
        prior,
    )
    sides = pattern.pattern_features(*np.nonzero(np.tri(3, 4)), (3, 4), 0)
    recipes = Recipe(sides[0], none_given(3), 2.0), Recipe(sides[1], none_given(4), 3.0)
    named = draws_file.NamedDraws(made, Scale(3.5, 1.1, 1, 5), ROWS, COLUMNS, recipes)
    draws_file.save_draws(tmp_path / "draws.safetensors", named)
    return named


def values_of_draws(named):
    """[S, N, M] fitted values, clipped, and the deviation of the noise."""
    draws, scale = named.draws, named.scale
    u, v = (x.astype(float) for x in (draws.rows, draws.columns))
    fitted = np.einsum("snk,smk->snm", u[..., :-1], v[..., :-1])
    fitted += u[..., None, -1] + v[:, None, :, -1]
    precision = draws.alpha[:, None, None] * draws.row_shares[:, :, None]
    noise = scale.unit / np.sqrt(precision * draws.column_shares[:, None])
    return np.clip(scale.center + scale.unit * fitted, scale.low, scale.high), noise


def test_draws_answer_with_spread_and_quantiles(draws, tmp_path):
    asked = [("007", "30"), ("ann", "10"), ("bob", "40"), ("eve", "20"), ("bob", "99")]
    (tmp_path / "pairs.csv").write_text("user,item\n" + "".join(f"{n},{m}\n" for n, m in asked))
    out, pairs = tmp_path / "out.csv", f"--pairs={tmp_path / 'pairs.csv'}"
    run(tmp_path, pairs, "--std", "--quantiles=0.05,0.95", f"--output={out}")
    lines = table(out)
    assert lines[0] == ["row", "column", "value", "std", "q0.05", "q0.95", "known"]
    assert [(line[0], line[1]) for line in lines[1:]] == asked
    assert [line[-1] for line in lines[1:]] == ["both", "both", "both", "column", "row"]
    numbers = np.array([line[2:-1] for line in lines[1:]], float)
    fitted, noise = values_of_draws(draws)
    std = np.sqrt(fitted.var(axis=0) + (noise**2).mean(axis=0))
    at = [2, 0, 1], [2, 0, 3]
    np.testing.assert_allclose(numbers[:3, 0], fitted.mean(axis=0)[at], rtol=1e-4)
    np.testing.assert_allclose(numbers[:3, 1], std[at], rtol=1e-4)
    assert (numbers[:, 2] < numbers[:, 0]).all()
    assert (numbers[:, 0] < numbers[:, 3]).all()
    # Of whom nothing is known it is no more certain than of those who are known.
    assert (numbers[3:, 1] > 0.8 * std.mean()).all()
    # Without them, the columns of factors.
    run(tmp_path / "draws.safetensors", pairs, f"--output={out}")
    assert table(out)[0] == ["row", "column", "value", "known"]


@pytest.mark.parametrize("by", ["mean", "upper"])
def test_the_best_columns_of_draws(draws, by, tmp_path):
    (tmp_path / "seen.csv").write_text("user,item,rating\nbob,20,3\n")
    (tmp_path / "rows.txt").write_text("user\nbob\neve\n")
    out = tmp_path / "out.csv"
    arguments = f"--top_by={by}", f"--exclude={tmp_path / 'seen.csv'}", f"--output={out}"
    run(tmp_path, "--top=3", f"--rows={tmp_path / 'rows.txt'}", *arguments)
    head, *lines = table(out)
    assert head == ["row", "column", "value", *(["upper"] if by == "upper" else []), "known"]
    fitted, _ = values_of_draws(draws)
    mean, upper = fitted.mean(axis=0)[1], (fitted.mean(axis=0) + fitted.std(axis=0))[1]
    by_value = mean if by == "mean" else upper
    order = sorted([0, 2, 3], key=lambda m: -by_value[m])
    mine = [line for line in lines if line[0] == "bob"]
    assert [int(line[1]) for line in mine] == [10 * (m + 1) for m in order]
    np.testing.assert_allclose([float(line[2]) for line in mine], mean[order], rtol=1e-4)
    np.testing.assert_allclose([float(line[-2]) for line in mine], by_value[order], rtol=1e-4)
    assert [line[-1] for line in lines if line[0] == "eve"] == ["column"] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--libmf_output=out",), "holds draws, but a LIBMF model is one pair of factors"),
        (("--top=3", "--quantiles=0.5,2"), "expected --quantiles between 0 and 1, got '2'"),
        (("--pairs=a", "--top_by=upper"), "--top_by goes with --top=N"),
        (("--top=3", "--factors=factors.safetensors", "--std"), "holds factors, which tell no"),
        (("--top=3", "--factors=cut"), "cut does not hold"),
    ],
)
@pytest.mark.usefixtures("factors", "draws")
def test_mistakes_with_draws(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "cut").write_bytes((tmp_path / "draws.safetensors").read_bytes()[:-1])
    output = () if "out" in arguments[0] else ("--output=out.csv",)
    ended = launch(predict, "--factors=draws.safetensors", *arguments, *output)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "expected one of --pairs=FILE, --top=N and --libmf_output=FILE, got none of them"),
        (("--pairs=a", "--top=3"), "got --pairs, --top"),
        (("--pairs=a", "--rows=b"), "--rows and --exclude go with --top=N"),
        (("--top=3",), "--output is needed"),
        (("--top=3", "--output=out.csv", "--factors=gone"), "gone does not exist"),
        (("--top=3", "--output=out.csv", "--factors=bad"), "bad does not hold factors"),
        (("--top=3", "--output=out.csv", "--factors=model"), "model, line 2: expected `m`"),
        (("--top=3", "--output=out.xyz"), "out.xyz: cannot tell the format"),
        (("--pairs=gone.csv", "--output=out.csv"), "gone.csv"),
        (("--top=3", "--rows=empty", "--output=out.csv"), "empty"),
    ],
)
@pytest.mark.usefixtures("factors")
def test_mistakes(arguments, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad").write_text("no factors")
    (tmp_path / "model").write_text("f 0\nx 1\n")
    (tmp_path / "empty").write_text("user\n")
    ended = launch(predict, "--factors=factors.safetensors", *arguments)
    assert ended.code == 1
    assert ended.err.startswith("error: ")
    assert message in ended.err
    assert ended.err.count("\n") == 1
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".", "out"))]


def test_levels_have_probabilities_and_cells_effects_of_their_own(draws, tmp_path):
    words, levels = np.array(["far", "near"], object), (1.0, 2.5, 5.0)
    group = entry_effects.Group("where", "all", words, np.array([0, 1]))
    effects = np.tile(np.array([-9.0, 9.0], "f"), (50, 1))
    thresholds = np.tile(np.array([-1.0, 0.5], "f"), (50, 1))
    model = draws.draws._replace(
        thresholds=thresholds, effects=entry_effects.EntryEffects(effects, np.ones((50, 1), "f"))
    )
    scale = Scale(0.0, 1.0, 1.0, 5.0, levels)
    named = draws._replace(draws=model, scale=scale, groups=(group,))
    draws_file.save_draws(tmp_path / "draws.safetensors", named)
    pairs, out = tmp_path / "pairs.csv", tmp_path / "out.csv"
    asked = ["bob,10,near", "bob,10,far", "bob,10,", "bob,10,away", "eve,99,near"]
    pairs.write_text("\n".join(["user,item,where", *asked]))
    run(tmp_path, f"--pairs={pairs}", "--probabilities", "--std", f"--output={out}")
    header, *lines = table(out)
    assert header == ["row", "column", "value", "std", "p1", "p2.5", "p5", "known"]
    numbers = np.array([line[2:-1] for line in lines], float)
    np.testing.assert_allclose(numbers[:, 2:].sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(numbers[:4, 0], numbers[:4, 2:] @ levels, rtol=1e-5)
    assert numbers[0, 4] > 0.95
    assert numbers[1, 2] > 0.99
    np.testing.assert_array_equal(numbers[2], numbers[3])
    assert numbers[4, 4] > 0.9
    # Without the column its effects are left out.
    pairs.write_text("user,item\nbob,10\n")
    run(tmp_path, f"--pairs={pairs}", "--probabilities", "--std", f"--output={out}")
    assert table(out)[1][2:-1] == lines[2][2:-1]
