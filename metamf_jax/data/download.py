"""Downloads a data set, on request only, and only if its archive has the checksum known for it.

    python -m metamf_jax.data.download ml100k --data_dir ~/data

The checksums are those that TensorFlow Datasets publishes for the same archives
(``tensorflow_datasets/url_checksums/movielens.txt``).
"""

import argparse
import dataclasses
import hashlib
import os
import sys
import tempfile
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

from metamf_jax.data import data_dir as data_dirs
from metamf_jax.data import jester

_CHUNK = 1 << 20


@dataclasses.dataclass(frozen=True)
class Archive:
    """A zip archive that holds one folder.

    Attributes:
      url: where it lies.
      num_bytes: its size.
      sha256: its checksum, hexadecimal.
      folder: the folder in it, which is also the data set's usual folder.
    """

    url: str
    num_bytes: int
    sha256: str
    folder: str


_GROUPLENS = "https://files.grouplens.org/datasets/movielens/"
ARCHIVES = {
    "ml100k": Archive(
        _GROUPLENS + "ml-100k.zip",
        4_924_029,
        "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
        "ml-100k",
    ),
    "ml1m": Archive(
        _GROUPLENS + "ml-1m.zip",
        5_917_549,
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20",
        "ml-1m",
    ),
    # The edition of September 2018.
    "latest_small": Archive(
        _GROUPLENS + "ml-latest-small.zip",
        978_202,
        "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436",
        "ml-latest-small",
    ),
}
_BY_HAND = {"jester": jester.REMEDY.replace("PART", "1")}


def download(
    name: str, data_dir: str | os.PathLike | None = None, *, timeout: float = 60.0
) -> Path:
    """Downloads, verifies and unpacks a data set into ``data_dir``, unless its folder is there.

    Everything happens in a folder aside, which takes its place at the end; a failed download leaves
    nothing behind.

    Args:
      name: a key of `ARCHIVES`.
      data_dir: where to put the data set's folder; None for $METAMF_DATA_DIR. Made if missing.
      timeout: seconds without an answer after which to give up.

    Returns:
      The data set's folder.

    Raises:
      ValueError: if the name is unknown or cannot be downloaded, no folder is known, the server
        does not answer, or the archive is not the one whose checksum is known.
    """
    if name in _BY_HAND:
        raise ValueError(
            f"{name} cannot be downloaded, for it is published as an Excel workbook only; "
            f"{_BY_HAND[name]}"
        )
    if name not in ARCHIVES:
        raise ValueError(f"unknown data set {name!r}; expected one of {', '.join(ARCHIVES)}")
    root = data_dirs.data_dir_or_default(data_dir)
    if root is None:
        raise ValueError(f"no folder to download into; give data_dir or set {data_dirs.VARIABLE}")
    archive = ARCHIVES[name]
    target = root / archive.folder
    if target.is_dir():
        return target
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{archive.folder}.", dir=root) as aside:
        file = Path(aside) / "archive.zip"
        _fetch(archive, file, timeout)
        with zipfile.ZipFile(file) as opened:
            opened.extractall(aside)
        unpacked = Path(aside) / archive.folder
        if not unpacked.is_dir():
            raise ValueError(f"{archive.url}: expected a folder {archive.folder} in the archive")
        unpacked.rename(target)
    return target


def _fetch(archive: Archive, file: Path, timeout: float) -> None:
    digest = hashlib.sha256()
    num_bytes = 0
    try:
        with urllib.request.urlopen(archive.url, timeout=timeout) as answer, file.open("wb") as out:
            while chunk := answer.read(_CHUNK):
                num_bytes += len(chunk)
                if num_bytes > archive.num_bytes:
                    break
                digest.update(chunk)
                out.write(chunk)
    except (urllib.error.URLError, OSError) as error:
        raise ValueError(
            f"{archive.url}: the download failed ({error}); try again, or fetch it by other means "
            f"and unpack its folder {archive.folder} into the data folder"
        ) from error
    if num_bytes != archive.num_bytes or digest.hexdigest() != archive.sha256:
        size = f"more than {archive.num_bytes}" if num_bytes > archive.num_bytes else num_bytes
        raise ValueError(
            f"{archive.url}: expected {archive.num_bytes} bytes with SHA-256 {archive.sha256}, got "
            f"{size} bytes with {digest.hexdigest()}; the archive was cut short or has changed, "
            "and nothing was kept: try again, or unpack an archive that you trust by hand"
        )


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m metamf_jax.data.download", description="Downloads a data set, verified."
    )
    parser.add_argument("name", help=f"one of {', '.join(ARCHIVES)}")
    parser.add_argument("--data_dir", help=f"folder to unpack into; default ${data_dirs.VARIABLE}")
    arguments = parser.parse_args(argv)
    try:
        print(download(arguments.name, arguments.data_dir))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
