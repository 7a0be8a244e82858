"""Where data sets lie: a folder given, or the one that METAMF_DATA_DIR names."""

import os
from collections.abc import Sequence
from pathlib import Path

VARIABLE = "METAMF_DATA_DIR"


def data_dir_or_default(data_dir: str | os.PathLike | None) -> Path | None:
    """``data_dir``, else $METAMF_DATA_DIR, else None."""
    given = data_dir if data_dir is not None else os.environ.get(VARIABLE)
    return Path(given) if given else None


def find(
    data_dir: str | os.PathLike | None, folder: str, names: Sequence[str], remedy: str
) -> Path:
    """The first of ``names`` in ``data_dir/folder`` or in ``data_dir`` itself.

    Args:
      data_dir: where to look; None for $METAMF_DATA_DIR.
      folder: the usual name of the data set's folder.
      names: the file's possible names.
      remedy: how to come by the files, for the message.

    Raises:
      FileNotFoundError: naming what was looked for, the variable, and the remedy.
    """
    root = data_dir_or_default(data_dir)
    if root is None:
        raise FileNotFoundError(
            f"no folder with data sets is known; give data_dir, or set {VARIABLE} to a folder that "
            f"holds {folder}/{names[0]}; {remedy}"
        )
    looked = [root / sub / name for sub in (folder, "") for name in names]
    for path in looked:
        if path.is_file():
            return path
    raise FileNotFoundError(
        f"none of these files is there: {', '.join(map(str, looked))}; give data_dir, or set "
        f"{VARIABLE} to the folder that holds {folder}; {remedy}"
    )
