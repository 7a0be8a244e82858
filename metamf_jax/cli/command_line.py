"""The flags of ``metamf``, and what ends a run."""

import argparse
import sys
from collections.abc import Sequence

from metamf_jax.runs import garbage

_DESCRIPTION = """\
Fills in the missing cells of tables of ratings, surveys, measurements or pixels, from priors that
were learned on other matrices. Nothing is trained on yours: an answer takes seconds.
"""


_EXAMPLES = """\
examples:
  metamf impute ratings.csv --output completed.csv
      user,item,rating in; a rating for every missing pair out
  metamf impute survey.csv --output filled.csv --plot filled.png
      a table with blanks in; the same table without blanks out, and a picture of both
  metamf impute ratings.csv --output best.csv --top 10 --std
      the ten highest predicted items of each user, with error bars
  metamf impute ratings.csv --output asked.csv --pairs wanted.csv
      only the pairs that wanted.csv lists, in its order
  metamf impute ratings.csv --output best.csv --top 10 --row_features users.csv
      what is known of the users beside their ratings; those without any are answered too
  metamf impute survey.csv --output drawn.csv --types auto --imputations 20 --report report.html
      numbers, levels and categories as they are; twenty completed tables, and a page on them
  metamf impute survey.csv --output filled.csv --save fit.safetensors
  metamf impute further.csv --output further_filled.csv --fitted fit.safetensors
      further rows of the same columns, by the fit of the former
"""


_IMPUTE = """\
Reads a table, measures on a part of its observed cells how well it can be imputed, and writes the
missing cells.

INPUT is a line for each observed cell (row id, column id, value), or a matrix with blanks: .csv,
.tsv, .parquet, .libmf, MovieLens .dat, Matrix Market .mtx or scipy .npz; text may be in .gz. Its
layout is found out. A table of pairs is answered by one with the same two id columns and a value
column; a matrix by the same matrix without blanks.
"""


def _require_consistent(flags: argparse.Namespace) -> None:
    if flags.top is not None and flags.top < 1:
        raise ValueError(f"--top must be at least 1, got {flags.top}")
    if flags.top is not None and flags.pairs:
        raise ValueError(
            "--top and --pairs exclude each other: one picks cells, the other lists them"
        )
    if flags.imputations is not None and (
        flags.top or flags.pairs or flags.std or flags.quantiles or flags.plot
    ):
        raise ValueError(
            "--imputations writes all missing cells, and no errors: it excludes --top, --pairs, "
            "--std, --quantiles and --plot"
        )
    if flags.types or flags.report:
        _require_typed(flags, "--types and --report exclude")
    if flags.types and flags.fitted:
        raise ValueError("--types are those of a fit, and --fitted has its own: give one of them")
    if flags.fitted and flags.save:
        raise ValueError("--save writes a fit and --fitted reads one instead: give one of them")
    if flags.fitted and flags.column_features:
        raise ValueError(
            "--fitted answers for the columns that it was fitted with, and knows their features:"
            " leave --column_features out, or fit anew with --save"
        )


def _require_typed(flags: argparse.Namespace, why: str) -> None:
    """Refuses what there is of matrices alone."""
    names = "pairs", "top", "std", "quantiles", "plot", "layout", "row_features", "column_features"
    others = [f"--{name}" for name in names if getattr(flags, name)]
    if others:
        raise ValueError(f"{why} {', '.join(others)}")
    if flags.imputations is not None and not 1 <= flags.imputations <= 100:
        raise ValueError(f"expected 1 to 100 imputations, got {flags.imputations}")


def _is_fit_of_types(flags: argparse.Namespace) -> bool:
    """Whether a fit of typed columns is to answer; then what these have not is refused."""
    if not flags.fitted:
        return False
    from metamf_jax.imputation import fit_file

    typed = fit_file.is_typed(flags.fitted)
    if typed:
        _require_typed(flags, f"{flags.fitted} is a fit of typed columns, which excludes")
    return typed


def _probabilities(text: str) -> tuple[float, ...]:
    try:
        found = tuple(map(float, text.split(",")))
    except ValueError:
        found = ()
    if not found or not all(0 < p < 1 for p in found):
        raise argparse.ArgumentTypeError(
            f"expected probabilities between 0 and 1, such as 0.05,0.95, got {text!r}"
        )
    return found


def _impute(flags: argparse.Namespace) -> None:
    # NumPy, JAX and the readers are imported when a command runs: `metamf --help` answers at once.
    _require_consistent(flags)
    if flags.types or flags.report or _is_fit_of_types(flags):
        with garbage.sparing():
            from metamf_jax.cli import impute_typed

        impute_typed.run(flags)
    else:
        with garbage.sparing():
            from metamf_jax.cli import impute

        impute.run(flags)


def _parser() -> argparse.ArgumentParser:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="metamf", description=_DESCRIPTION, epilog=_EXAMPLES, formatter_class=formatter
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND")
    impute = commands.add_parser(
        "impute",
        help="fill in the missing cells of a table",
        description=_IMPUTE,
        epilog=_EXAMPLES,
        formatter_class=formatter,
    )
    impute.add_argument("input", metavar="INPUT", help="the table to be completed")
    impute.add_argument(
        "--output", required=True, metavar="FILE", help="file to write: .csv, .tsv or .parquet"
    )
    impute.add_argument(
        "--pairs", metavar="FILE", help="table of row and column ids: only these cells, in order"
    )
    impute.add_argument(
        "--top", type=int, metavar="N", help="only the N highest missing cells of each row"
    )
    impute.add_argument(
        "--std",
        action="store_true",
        help="write standard errors too (a column; for a matrix a second file): the true value "
        "lies within 1.645 of them in nine of ten cases",
    )
    impute.add_argument(
        "--quantiles",
        type=_probabilities,
        default=(),
        metavar="Q,Q..",
        help="write these quantiles of each value too, such as 0.05,0.95 (columns q0.05 and q0.95; "
        "for a matrix files of its own)",
    )
    impute.add_argument(
        "--save", metavar="FIT", help="write the fit too, a .safetensors file for --fitted"
    )
    impute.add_argument(
        "--fitted",
        metavar="FIT",
        help="fit nothing: answer by a fit that --save wrote, whose columns INPUT's are, by name, "
        "or some of them; rows of the same name are the fitted ones, with their cells",
    )
    impute.add_argument(
        "--imputations",
        type=int,
        metavar="M",
        help="draw the missing cells M times, for multiple imputation, into FILE-1 to FILE-M (the "
        "number before the extension)",
    )
    impute.add_argument(
        "--types",
        metavar="FILE.json",
        help='columns of numbers, whole numbers, levels and categories: a file such as {"age": '
        '{"type": "integer", "low": 0, "high": 120}, "grade": {"type": "ordinal", "levels": '
        '["low", "high"]}, "town": "nominal"} (numeric, integer, binary, ordinal or nominal; what '
        "is not said is found out), or auto",
    )
    impute.add_argument(
        "--report",
        metavar="FILE.html",
        help="write a page on the columns, their errors and what was imputed; implies --types auto",
    )
    impute.add_argument(
        "--row_features",
        metavar="FILE",
        help="what is known of rows, beside ratings: a table with a header and a line for each id; "
        "numbers, categories, labels between |; what a column holds may end its name: zip:category",
    )
    impute.add_argument(
        "--column_features", metavar="FILE", help="the same of columns, such as films"
    )
    impute.add_argument("--plot", metavar="FILE.png", help="draw the table, before and after")
    impute.add_argument(
        "--weights",
        default="general",
        metavar="PRIOR",
        help="learned prior: a name, or the workdir of a run of experiments.train or pretrain, or "
        "its .safetensors file (default: %(default)s)",
    )
    impute.add_argument(
        "--standardize",
        choices=["auto", "matrix", "columns", "rows"],
        default="auto",
        help="one unit for all cells, or one for each column or row; auto tries (default)",
    )
    impute.add_argument(
        "--missing",
        choices=["at_random", "by_value"],
        default="at_random",
        help="why cells are missing: for whatever else is observed (default), or for what they "
        "would say, which moves imputed values; the table itself cannot tell for sure",
    )
    impute.add_argument(
        "--layout", choices=["pairs", "dense"], help="of INPUT, where it is not found out right"
    )
    impute.add_argument(
        "--seed", type=int, default=0, help="which observed cells are held out (default: 0)"
    )
    impute.set_defaults(run=_impute)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; a user's mistake ends in one line on stderr.

    Args:
      arguments: of the command line; None for the process's.

    Returns:
      The exit code: 0, 1 after a mistake in files, 2 after one in arguments.
    """
    parser = _parser()
    flags = parser.parse_args(arguments)
    if flags.command is None:
        parser.print_help()
        return 2
    try:
        flags.run(flags)
    except (ValueError, FileNotFoundError, PermissionError) as error:
        print(f"metamf: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("metamf: interrupted; nothing was written", file=sys.stderr)
        return 130
    return 0
