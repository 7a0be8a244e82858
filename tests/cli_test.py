"""``metamf`` as a user types it."""

import csv
import re
import subprocess
import sys

import numpy as np
import pytest

from metamf_jax import cli
from metamf_jax.data import synthetic

LINES = [
    f"u{n},i{m},{value:g}"
    for n, m, value in zip(
        *(lambda e: (e.rows.tolist(), e.columns.tolist(), e.values.tolist()))(
            synthetic.synthetic_ratings(1, 14, 9, 0.6).entries
        ),
        strict=True,
    )
]


@pytest.fixture
def ratings(tmp_path):
    path = tmp_path / "ratings.csv"
    path.write_text("user,item,rating\n" + "\n".join(LINES) + "\n")
    return path


def read(path):
    with open(path, newline="") as file:
        return list(csv.reader(file))


def test_pairs_are_answered_by_pairs(ratings, tmp_path, capsys):
    output = tmp_path / "completed.csv"
    assert cli.main(["impute", str(ratings), f"--output={output}", "--std"]) == 0
    out = capsys.readouterr().out
    assert "14 rows, 9 columns" in out
    assert f"{len(LINES)} observed cells" in out
    assert "held-out error on" in out
    assert "by row and column effects alone" in out
    header, *lines = read(output)
    assert header == ["user", "item", "rating", "error"]
    assert len(lines) == 14 * 9 - len(LINES)
    given = {tuple(line.split(",")[:2]) for line in LINES}
    assert not given & {tuple(line[:2]) for line in lines}
    numbers = np.array([line[2:] for line in lines], float)
    assert (numbers > 0).all()
    assert (numbers[:, 0] < 6).all()


def test_asked_pairs_come_in_their_order(ratings, tmp_path, capsys):
    asked, output = tmp_path / "asked.csv", tmp_path / "out.csv"
    asked.write_text("item,user\ni3,u5\ni1,u2\ni1,nobody\nnothing,nobody\ni3,u0\n")
    pairs = f"--pairs={asked}"
    assert cli.main(["impute", str(ratings), f"--output={output}", pairs, "--std"]) == 0
    assert "names 1 rows and 1 columns without an observed cell" in capsys.readouterr().out
    header, *lines = read(output)
    assert header == ["user", "item", "rating", "error"]
    expected = [("u5", "i3"), ("u2", "i1"), ("nobody", "i1"), ("nobody", "nothing"), ("u0", "i3")]
    assert [(user, item) for user, item, *_ in lines] == expected
    values, errors = np.array([line[2:] for line in lines], float).T
    assert (values > 0).all()
    assert (values < 6).all()
    assert errors[2] > errors[1]


def test_quantiles_stand_beside_the_values(ratings, tmp_path, capsys):
    output = tmp_path / "out.csv"
    arguments = ["impute", str(ratings), f"--output={output}", "--quantiles=0.05,0.95"]
    assert cli.main([*arguments, "--std"]) == 0
    header, *lines = read(output)
    assert header == ["user", "item", "rating", "error", "q0.05", "q0.95"]
    value, _, low, high = np.array([line[2:] for line in lines], float).T
    assert (low < value).all()
    assert (value < high).all()
    with pytest.raises(SystemExit):
        cli.main([*arguments[:-1], "--quantiles=5,95"])
    assert "between 0 and 1, such as 0.05,0.95, got '5,95'" in capsys.readouterr().err
    # A matrix's are files of their own.
    path = tmp_path / "m.csv"
    path.write_text("a,b,c\n1.5,2.5,3.5\n2.5,,4.5\n3.5,4.5,5.5\n4.5,5.5,\n")
    arguments = ["impute", str(path), f"--output={output}", "--quantiles=0.1,0.9"]
    assert cli.main(arguments) == 0
    several = [
        np.array(read(tmp_path / name)[1:], float)
        for name in ("out.q0.1.csv", "out.csv", "out.q0.9.csv")
    ]
    moved = np.diff(several, axis=0) > 0
    assert moved[:, [1, 3], [1, 2]].all()
    assert moved.sum() == 4


def test_top(ratings, tmp_path):
    whole, output = tmp_path / "whole.csv", tmp_path / "top.csv"
    cli.main(["impute", str(ratings), f"--output={whole}"])
    assert cli.main(["impute", str(ratings), f"--output={output}", "--top=2"]) == 0
    every = {(user, item): value for user, item, value in read(whole)[1:]}
    best = {}
    for (user, _), value in every.items():
        best.setdefault(user, []).append(float(value))
    top = read(output)[1:]
    assert all(every[user, item] == value for user, item, value in top)
    # Values that are written alike may come in any order.
    expected = [(user, value) for user, found in best.items() for value in sorted(found)[-2:]]
    assert sorted((user, float(value)) for user, _, value in top) == sorted(expected)


def test_a_matrix_is_answered_by_a_matrix(tmp_path, capsys):
    path, output, plot = (tmp_path / name for name in ("m.csv", "full.csv", "plot.png"))
    rng = np.random.default_rng(0)
    values = np.outer(rng.normal(size=12), [1, 2, 3, 4]) + rng.normal(size=(12, 4))
    texts = [[f"{value:.3f}" for value in row] for row in values]
    texts[2][1] = texts[7][3] = ""
    path.write_text("a,b,c,d\n" + "\n".join(map(",".join, texts)) + "\n")
    arguments = ["impute", str(path), f"--output={output}", f"--plot={plot}", "--std"]
    assert cli.main(arguments) == 0
    header, *lines = read(output)
    assert header == list("abcd")
    completed = np.array(lines, float)
    given = np.array([[text != "" for text in row] for row in texts])
    np.testing.assert_allclose(completed[given], np.round(values, 3)[given], rtol=1e-6)
    errors = np.array(read(tmp_path / "full.std.csv")[1:], float)
    np.testing.assert_array_equal(errors > 0, ~given)
    assert plot.read_bytes().startswith(b"\x89PNG")
    assert "wrote 2 imputed cells" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "arguments", "message"),
    [
        (None, [], "no such file"),
        ("user,item,rating\na,b,4\na,c,good\n", [], "line 3"),
        ("user,item,rating\na,b,4\n", ["--top=0"], "--top must be at least 1"),
        ("user,item,rating\na,b,4\n", ["--weights=best"], "weights by name"),
    ],
)
def test_mistakes_end_in_one_line(tmp_path, capsys, text, arguments, message):
    path = tmp_path / "in.csv"
    if text is not None:
        path.write_text(text)
    output = tmp_path / "out.csv"
    assert cli.main(["impute", str(path), f"--output={output}", *arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("metamf: ")
    assert message in err
    assert err.count("\n") == 1
    assert not output.exists()


def test_help_imports_no_jax_and_shows_examples():
    code = "import sys; from metamf_jax import cli; cli.main([]); assert 'jax' not in sys.modules"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "metamf impute ratings.csv --output completed.csv" in ended.stdout


def test_columns_with_units_of_their_own_are_told_apart(tmp_path, capsys):
    rng = np.random.default_rng(0)
    wealth = rng.normal(size=60)
    population = np.exp(17 + rng.normal(size=60)).astype(int)
    life, children = 70 + 6 * wealth + rng.normal(size=60), 3 - wealth
    lines = ["population,life,children"]
    for n, (p, y, c) in enumerate(zip(population, life, children, strict=True)):
        lines.append(f"{p},{'' if n % 5 == 0 else f'{y:.1f}'},{c:.2f}")
    (tmp_path / "in.csv").write_text("\n".join(lines) + "\n")
    arguments = ["impute", str(tmp_path / "in.csv"), "--output", str(tmp_path / "out.csv")]
    assert cli.main(arguments) == 0
    told = capsys.readouterr().out
    assert "standardised with each column in its own unit" in told
    match = re.search(
        r"cells: ([\d.]+) of a column's deviation .*, ([\d.]+) by the columns' mean", told
    )
    assert match, told
    assert float(match[1]) < 0.9 * float(match[2])
    assert "largest errors of columns: population" in told
    filled = np.array(
        [float(line.split(",")[1]) for line in (tmp_path / "out.csv").read_text().splitlines()[1:]]
    )
    assert np.sqrt(((filled - life)[::5] ** 2).mean()) < 0.5 * life.std()
    # For those who say so, values may be moved; the option is refused by name otherwise.
    assert cli.main([*arguments, "--missing", "by_value"]) == 0
    with pytest.raises(SystemExit):
        cli.main([*arguments, "--missing", "never"])


def test_further_rows_are_answered_by_a_saved_fit(ratings, tmp_path, capsys):
    whole, fit, output = (tmp_path / name for name in ("whole.csv", "fit.safetensors", "out.csv"))
    arguments = ["impute", str(ratings), f"--output={whole}", f"--save={fit}", "--std"]
    assert cli.main(arguments) == 0
    # Of a fitted row, named alone or with a cell that it had, all is known; another is new.
    further = tmp_path / "further.csv"
    own = LINES[0].split(",")
    new = [f"new,{line.split(',')[1]},{line.split(',')[2]}" for line in LINES if line[:3] == "u3,"]
    further.write_text("\n".join(["user,item,rating", ",".join(own), *new]) + "\n")
    arguments = ["impute", str(further), f"--output={output}", f"--fitted={fit}"]
    assert cli.main([*arguments, "--std", "--quantiles=0.1,0.9"]) == 0
    assert "1 of the 2 rows are among these" in capsys.readouterr().out
    header, *lines = read(output)
    assert header == ["user", "item", "rating", "error", "q0.1", "q0.9"]
    fitted = {tuple(line[:2]): line[2:] for line in read(whole)[1:]}
    found = {tuple(line[:2]): line[2:] for line in lines}
    for (user, item), answer in found.items():
        expected = fitted["u3" if user == "new" else user, item]
        np.testing.assert_allclose([float(x) for x in answer[:2]], [*map(float, expected)], 0.02)
        value, _, low, high = map(float, answer)
        assert low < value < high
    assert {item for user, item in found if user == own[0]} == {
        item for user, item in fitted if user == own[0]
    }
    assert cli.main([*arguments, "--imputations=2"]) == 0
    assert len(read(tmp_path / "out-2.csv")) == 1 + len(lines)
    further.write_text("user,item,rating\nu1,i1,3\nu1,unheard,4\n")
    assert cli.main(arguments) == 1
    assert "column 'unheard', which" in capsys.readouterr().err
    assert cli.main([*arguments, f"--save={fit}"]) == 1
    assert "--fitted" in capsys.readouterr().err


def test_columns_of_a_further_matrix_are_matched_by_name(tmp_path, capsys):
    rng = np.random.default_rng(0)
    values = np.outer(rng.normal(size=30), [1, -1, 2, 3]) + 0.1 * rng.normal(size=(30, 4))
    train, fit, new, output = (tmp_path / name for name in ("t.csv", "f", "new.csv", "out.csv"))
    train.write_text("a,b,c,d\n" + "\n".join(",".join(map(str, row)) for row in values.round(3)))
    arguments = ["impute", str(train), f"--output={output}", f"--save={fit}", "--layout=dense"]
    assert cli.main(arguments) == 0
    new.write_text("c,a\n2.0,\n,-1.0\n")
    assert cli.main(["impute", str(new), f"--output={output}", f"--fitted={fit}", "--std"]) == 0
    assert "0 of the 2 rows are among these" in capsys.readouterr().out
    header, *lines = read(output)
    assert header == ["c", "a"]
    np.testing.assert_allclose(np.array(lines, float), [[2, 1], [-2, -1]], atol=0.4)
    errors = np.array(read(tmp_path / "out.std.csv")[1:], float)
    np.testing.assert_array_equal(errors > 0, [[False, True], [True, False]])


def test_several_imputations(ratings, tmp_path, capsys):
    output = tmp_path / "drawn.csv"
    arguments = ["impute", str(ratings), f"--output={output}", "--imputations=3"]
    assert cli.main(arguments) == 0
    assert "wrote 3 imputations" in capsys.readouterr().out
    several = [read(tmp_path / f"drawn-{n}.csv") for n in (1, 2, 3)]
    assert not output.exists()
    assert {len(lines) for lines in several} == {1 + 14 * 9 - len(LINES)}
    values = np.array([[line[2] for line in lines[1:]] for lines in several], float)
    assert (values.std(axis=0) > 0).mean() > 0.9
    assert cli.main([*arguments, "--std"]) == 1
    assert "--imputations" in capsys.readouterr().err


def test_several_imputations_of_a_matrix(tmp_path):
    path, output = tmp_path / "table.csv", tmp_path / "drawn.csv"
    rng = np.random.default_rng(0)
    cells = [
        [f"{x:.2f}" if rng.random() < 0.8 else "" for x in row] for row in rng.normal(size=(20, 4))
    ]
    path.write_text("a,b,c,d\n" + "\n".join(map(",".join, cells)) + "\n")
    assert cli.main(["impute", str(path), f"--output={output}", "--imputations=2"]) == 0
    one, other = (read(tmp_path / f"drawn-{n}.csv") for n in (1, 2))
    assert one != other
    for given, drawn in zip(cells, one[1:], strict=True):
        assert all(x in ("", y) for x, y in zip(given, drawn, strict=True))
        assert all(drawn)


def test_features_answer_for_rows_and_columns_without_cells(tmp_path, capsys):
    rng = np.random.default_rng(0)
    levels, numbers = np.arange(40) % 3, rng.normal(size=30)
    truth = 3 + 0.8 * (levels[:, None] - 1) + 0.8 * numbers
    shown = rng.random(truth.shape) < 0.35
    shown[:4], shown[:, :3] = False, False
    noisy = np.clip(np.round(2 * truth + 0.6 * rng.normal(size=truth.shape)) / 2, 0, 6)
    lines = [f"u{n},i{m},{noisy[n, m]}" for n, m in np.argwhere(shown)]
    ratings, users, items = (tmp_path / name for name in ("r.csv", "users.csv", "items.csv"))
    output, fit = tmp_path / "out.csv", tmp_path / "fit.safetensors"
    ratings.write_text("\n".join(["user,item,rating", *lines]))
    users.write_text("\n".join(["user,level", *(f"u{n},l{x}" for n, x in enumerate(levels))]))
    items.write_text("\n".join(["item,number", *(f"i{m},{x}" for m, x in enumerate(numbers))]))
    arguments = ["impute", str(ratings), f"--output={output}"]
    tables = [f"--row_features={users}", f"--column_features={items}"]
    assert cli.main([*arguments, *tables, f"--save={fit}"]) == 0
    out = capsys.readouterr().out
    assert "users.csv tells of 4 rows without an observed cell: answered too" in out
    assert "features: 3 of 40 of 40 rows, 1 of 30 of 30 columns; held-out error" in out
    found = {tuple(line[:2]): float(line[2]) for line in read(output)[1:]}
    assert len(found) == 40 * 30 - shown.sum()
    new = np.array([[found[f"u{n}", f"i{m}"] for m in range(30)] for n in range(4)])
    assert np.sqrt(((new - truth[:4]) ** 2).mean()) < 0.4 * truth.std()
    # By the fit a new user has those of a fitted one of the same level; a fitted one its own.
    (tmp_path / "new.csv").write_text("user,item,rating\nu7,i5,3\n")
    (tmp_path / "more.csv").write_text("user,level\nu7,l1\nu90,l1\n")
    asked = ["impute", str(tmp_path / "new.csv"), f"--output={output}", f"--fitted={fit}"]
    assert cli.main([*asked, f"--row_features={tmp_path / 'more.csv'}"]) == 0
    again = {tuple(line[:2]): float(line[2]) for line in read(output)[1:]}
    np.testing.assert_allclose([again["u90", f"i{m}"] for m in range(30)], new[1], atol=0.02)
    capsys.readouterr()
    for wrong, message in (
        (["--fitted=fit", tables[1]], "--fitted answers for the columns that it was fitted with"),
        (["--types=auto", *tables], "exclude --row_features, --column_features"),
        ([f"--column_features={users}"], "none of its 40 ids, such as 'u0', stands in the input"),
    ):
        assert cli.main([*arguments, *wrong]) == 1
        assert message in capsys.readouterr().err
