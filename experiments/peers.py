"""Other programs and packages, each run as a process of its own."""

import subprocess
import time


def run_program(command: list[str]) -> tuple[float, str]:
    """Seconds and output of a program.

    Raises:
      ValueError: it cannot be run, or fails.
    """
    start = time.perf_counter()
    try:
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise ValueError(f"{command[0]} cannot be run: {error}") from error
    if ran.returncode:
        raise ValueError(f"{command[0]} ended with code {ran.returncode}: {ran.stderr[-500:]}")
    return time.perf_counter() - start, ran.stdout


def has_package(python: str, name: str) -> bool:
    """Whether that Python can import the package."""
    code = f"import importlib.util as u; print(u.find_spec({name!r}) is not None)"
    return run_program([python, "-c", code])[1].strip() == "True"
