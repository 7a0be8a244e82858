"""What a factorization has where nothing is said: by preset, by loss, by solver."""

from collections.abc import Mapping
from typing import Any

from experiments.solving.config import PENALTIES_TO_TRY
from metamf_jax.factorization import objective as objectives
from metamf_jax.factorization.losses import RECORDS
from metamf_jax.factorization.solvers import SOLVERS

# A run in which nothing is chosen from the data but the first step size.
_PLAIN = {
    "penalty": "weighted_l2",
    "regularization": 0.05,
    "biases": False,
    "init": "uniform",
    "step_size": "bold_driver:auto",
}
# What a preset sets where no flag does.
PRESETS = {
    "smoke": {
        **_PLAIN,
        "rank": 4,
        "epochs": 3,
        "evaluate_every": 1,
        "checkpoint_seconds": 0.0,
    },
    "tiny": {},
    # The settings of the DSGD authors; their step size 0.01 counts twice.
    "paper": {
        **_PLAIN,
        "rank": 50,
        "epochs": 60,
        "penalty": "weighted_l2",
        "regularization": 0.05,
        "init": "uniform:0.5",
        "step_size": "bold_driver:0.02",
    },
    # Sizes tuned on a tenth of MovieLens-1M's training cells; penalty and start on another split.
    # Those of MovieLens-100K are in `flagfiles/factorize_ml100k.txt`.
    "best": {
        "rank": 128,
        "epochs": 24,
        "biases": True,
        "penalty": "root_l2",
        "regularization": 0.95,
        "init": "positive:0.093",
        "step_size": "adagrad:0.05",
    },
}
# None is chosen from the data. On inner splits of MovieLens-100K and FilmTrust ranks of 32 to 128
# differ by 0.4% of the RMSE, and `positive` is 0.7% and 0.2% better than `uniform`.
_DEFAULTS = {
    "loss": "squared",
    "penalty": None,
    "regularization": None,
    "biases": True,
    "rank": 64,
    "epochs": None,
    "init": "positive",
    "step_size": None,
    "blocks": None,
    "evaluate_every": None,
    "checkpoint_seconds": 30.0,
}
# Under a loss of all cells most of the fit is the zeros', and AdaGrad's first steps are theirs.
_DEFAULTS_OF_ALL_CELLS = {"biases": False, "init": "uniform", "step_size": "bold_driver:auto"}
# Multiplicative updates need no step size.
_DEFAULTS_OF_BOUNDED = {**_DEFAULTS_OF_ALL_CELLS, "step_size": "constant:1"}

# An evaluation reads all entries, as an epoch does: every tenth makes it a tenth of the time.
_EVALUATE_SGD_EVERY = 10


def chosen(preset: str, solver: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """What the preset sets, and flags change; loss and penalty by their own names.

    Args:
      preset: its name.
      solver: a name of `SOLVERS`.
      given: the flags that were given, by name.

    Raises:
      ValueError: a regularization that is no number, or a loss that the penalty does not go with.
    """
    loss = given.get("loss", _DEFAULTS["loss"])
    name, _ = objectives.resolve_names(loss, None if loss in objectives.ALIASES else "none")
    of_loss = {}
    if RECORDS[name].all_cells:
        bounded = RECORDS[name].non_negative
        of_loss = _DEFAULTS_OF_BOUNDED if bounded else _DEFAULTS_OF_ALL_CELLS
    settings = {**_DEFAULTS, **of_loss, **PRESETS[preset], **given, "loss": name}
    if isinstance(settings["regularization"], str):
        settings["regularization"] = _strength(settings["regularization"])
    if loss in objectives.ALIASES:
        # The alias names its own penalty, whatever the preset's is.
        _, settings["penalty"] = objectives.resolve_names(loss, given.get("penalty"))
    elif "prior" in given and "penalty" not in given:
        settings["penalty"] = "prior"
    elif settings["penalty"] is None and settings["regularization"] is not None:
        settings["penalty"] = "weighted_l2"
    elif settings["penalty"] is None and name != "squared":
        settings["penalty"] = PENALTIES_TO_TRY[0]
    kind = SOLVERS[solver]
    if settings["step_size"] is None and kind.sharded:
        settings["step_size"] = "bold_driver:auto"
    if settings["evaluate_every"] is None:
        often = not kind.reads_step_size or "early_stopping" in given
        settings["evaluate_every"] = 1 if often else _EVALUATE_SGD_EVERY
    return settings


def _strength(text: str) -> float | None:
    """Of the penalty; None where the data are to tell it."""
    try:
        return None if text == "auto" else float(text)
    except ValueError:
        raise ValueError(f"expected a regularization as a number or auto, got {text!r}") from None
