"""The named sizes of meta-training, and how flags change single ones."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from typing import Any

from metamf_jax.meta_learning.encoder import EncoderConfig
from metamf_jax.meta_learning.episodes import EpisodeConfig
from metamf_jax.meta_learning.map_estimation import MapConfig
from metamf_jax.meta_learning.meta_loss import ModelConfig
from metamf_jax.meta_learning.training import TrainingConfig

_PAPER = {
    "model": ModelConfig(EncoderConfig(channels=32, layers=3, rank=32), MapConfig(steps=10)),
    "episodes": EpisodeConfig(),
    "training": TrainingConfig(),
    "scored_matrices": 200,
}

# A bias model inside the encoder, precisions for every row and column, and inner steps that go as
# far as the curvature allows.
_BEST_MODEL = ModelConfig(
    EncoderConfig(channels=32, layers=3, rank=32, precision="per_row", effects=True),
    MapConfig(steps=10, step_form="curvature"),
)

TRAIN = {
    "smoke": {
        "model": ModelConfig(EncoderConfig(channels=4, layers=2, rank=4), MapConfig(steps=3)),
        "episodes": EpisodeConfig(rows=(12, 12), columns=(12, 12), minimum_cells=5),
        "training": TrainingConfig(batch=4, max_steps=20, evaluate_every=5),
        "scored_matrices": 10,
    },
    "tiny": {
        "model": _BEST_MODEL,
        "episodes": EpisodeConfig(rows=(20, 60), columns=(20, 60)),
        "training": TrainingConfig(
            max_steps=800, learning_rate=2e-3, schedule="cosine", keep="last"
        ),
        "scored_matrices": 100,
    },
    "paper": _PAPER,
    # Jester's 70 meta-training columns are soon learned by heart: less soon from episodes of many
    # sizes and fillings; and the average's validation is a smoother curve to stop by.
    "best": {
        **_PAPER,
        "model": _BEST_MODEL,
        "training_episodes": EpisodeConfig(
            rows=(15, 30), columns=(10, 30), support_fraction=(0.3, 0.7)
        ),
        "training": TrainingConfig(learning_rate=2e-3, schedule="cosine", average_decay=0.995),
    },
}

# The comparison of all methods; what is not meta-trained has sizes of its own.
_PLAIN = ModelConfig(EncoderConfig(channels=16, layers=2, rank=8), MapConfig(steps=5))

COMPARE = {
    "smoke": {**TRAIN["smoke"], "training": TrainingConfig(batch=4, max_steps=5)},
    "tiny": {
        "model": _PLAIN,
        "episodes": EpisodeConfig(rows=(20, 20), columns=(20, 20)),
        "training": TrainingConfig(batch=8, max_steps=100, learning_rate=3e-3, schedule="cosine"),
        "scored_matrices": 30,
    },
    "paper": TRAIN["paper"],
    "best": TRAIN["best"],
}
COMPARE_SPLITS = {"smoke": 2, "tiny": 1, "paper": 10, "best": 10}

FIGURES = {
    "smoke": {
        **COMPARE["smoke"],
        "fractions": (0.2, 0.5),
        "sides": (12,),
        "matrices": (8,),
        "steps": (0, 3),
    },
    "tiny": {
        **COMPARE["tiny"],
        "fractions": (0.1, 0.3, 0.9),
        "sides": (10, 30),
        "matrices": (8, 128),
        "steps": (0, 5, 20),
    },
    "paper": {
        **_PAPER,
        "fractions": (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9),
        "sides": (10, 20, 30, 50, 100, 200),
        "matrices": (16, 64, 256, 1024, 4096),
        "steps": (0, 1, 2, 5, 10, 20, 50),
    },
}
FIGURES["best"] = {**FIGURES["paper"], **TRAIN["best"]}


def overridden(settings: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A preset with some of its values changed.

    Args:
      settings: a preset.
      overrides: such as ``model.inner.steps=5`` or ``episodes.rows=[20,60]``: values are written
        as JSON, words without quotes.

    Raises:
      ValueError: there is no such value, or this one is of another kind or not allowed.
    """
    changed = dict(settings)
    for override in overrides:
        path, equals, text = override.partition("=")
        if not equals:
            raise ValueError(f"expected an override as NAME=VALUE, got {override!r}")
        try:
            value = json.loads(text)
        except json.JSONDecodeError:
            value = text
        first, *rest = path.split(".")
        if first not in changed:
            raise ValueError(f"{override}: no {first!r} among {', '.join(changed)}")
        changed[first] = _replaced(changed[first], rest, value, override)
    return changed


def _replaced(old: Any, path: list[str], value: Any, override: str) -> Any:
    if path:
        held: Any = old
        names = [f.name for f in dataclasses.fields(held)] if dataclasses.is_dataclass(old) else []
        if path[0] not in names:
            raise ValueError(f"{override}: no {path[0]!r} among {', '.join(names) or 'no more'}")
        new = _replaced(getattr(held, path[0]), path[1:], value, override)
        return dataclasses.replace(held, **{path[0]: new})
    if isinstance(old, tuple) and isinstance(value, list) and len(value) == len(old):
        return tuple(_replaced(o, [], v, override) for o, v in zip(old, value, strict=True))
    if isinstance(old, float) and type(value) is int:
        return float(value)
    if type(value) is not type(old):
        raise ValueError(f"{override}: expected a value like {old!r}, got {value!r}")
    return value
