"""Names of the files that stand beside an output, and of columns."""

import pathlib


def quantile_name(probability: float) -> str:
    return f"q{probability}"


def beside(output: str, mark: str = ".std") -> str:
    """``completed.csv.gz`` to ``completed.std.csv.gz``."""
    path = pathlib.Path(output)
    suffixes = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    stem = path.name[: len(path.name) - len(suffixes)]
    return str(path.with_name(f"{stem}{mark}{suffixes}"))
