"""The prediction binary as a user runs it."""

import csv
import gzip

import numpy as np
import pytest

from experiments import predict
from metamf_jax.factorization.factor_file import save_factors
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
