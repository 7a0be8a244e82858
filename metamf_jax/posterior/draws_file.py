"""Draws of a posterior with the names of their rows and columns, as one safetensors file."""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

from metamf_jax.factorization.factor_file import decode_ids, encode_ids
from metamf_jax.posterior import chains
from metamf_jax.posterior.chains import Draws
from metamf_jax.posterior.entry_effects import EntryEffects, Group
from metamf_jax.posterior.fold_in import Recipe
from metamf_jax.posterior.gibbs import State
from metamf_jax.posterior.given import Coding, GivenFeatures
from metamf_jax.posterior.hyperprior import Hyperprior
from metamf_jax.posterior.pattern import SideFeatures
from metamf_jax.posterior.predictive import Scale
from metamf_jax.runs.checkpoint import refusing_foreign, write_arrays

_HEADER = "draws"
_PRIORS = ("row_prior", "column_prior")
_RECIPES = ("row_recipe", "column_recipe")
# Of `SideFeatures` and of `GivenFeatures`.
_OF_PATTERN = ("groups", "projection", "centers", "scales")
_OF_TABLE = ("groups", "centers", "scales")


class NamedDraws(NamedTuple):
    """Draws, and what it takes to answer from them.

    Attributes:
      draws: S of them.
      scale: of the values.
      row_ids: [N] integers or strings.
      column_ids: [M] likewise.
      recipes: of rows and of columns, for further ones.
      groups: of the entries' effects.
    """

    draws: Draws
    scale: Scale
    row_ids: np.ndarray
    column_ids: np.ndarray
    recipes: tuple[Recipe, Recipe]
    groups: tuple[Group, ...] = ()


def size_in_bytes(shape: tuple[int, int], rank: int, num_draws: int, num_effects: int = 0) -> int:
    """What draws take, in memory and as a file, but for the few numbers of the hyperprior."""
    # K factors, an effect and a share of the noise.
    return 4 * num_draws * (sum(shape) * (rank + 2) + num_effects)


def save_draw(path: str | os.PathLike, state: State) -> None:
    """Writes one draw, aside and renamed; many of them make `gather`."""
    write_arrays(path, _named(chains.stack([state])), {"metamf_jax": "draw"})


def gather(paths: Sequence[str | os.PathLike]) -> Draws:
    """Reads what `save_draw` wrote, in the order of the paths.

    Raises:
      ValueError: a file is missing or holds something else.
    """
    held: dict[str, np.ndarray] = {}
    for n, path in enumerate(paths):
        with refusing_foreign(path, "a draw of this package"):
            for name, one in safetensors.numpy.load_file(path).items():
                if n == 0:
                    held[name] = np.empty((len(paths), *one.shape[1:]), one.dtype)
                held[name][n] = one[0]
    return _unnamed(held)


def save_draws(path: str | os.PathLike, named: NamedDraws) -> None:
    """Writes draws, scale, id maps and what further rows need, aside and renamed."""
    arrays = _named(named.draws)
    *scale, levels = named.scale
    arrays["scale"], arrays["levels"] = np.array(scale, np.float64), np.array(levels, np.float64)
    arrays |= _named_groups(named.groups)
    arrays["row_ids"] = encode_ids(named.row_ids)
    arrays["column_ids"] = encode_ids(named.column_ids)
    for side, recipe in zip(_RECIPES, named.recipes, strict=True):
        arrays |= _named_recipe(side, recipe)
    write_arrays(path, arrays, {"metamf_jax": _HEADER})


def holds_draws(path: str | os.PathLike) -> bool:
    """Whether this is a file that `save_draws` wrote."""
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return (file.metadata() or {}).get("metamf_jax") == _HEADER
    except (safetensors.SafetensorError, OSError):
        return False


def load_draws(path: str | os.PathLike) -> NamedDraws:
    """Reads what `save_draws` wrote.

    Raises:
      ValueError: there is no such file, or it is another one.
    """
    if not pathlib.Path(path).exists():
        raise ValueError(f"{path} does not exist: expected draws as --solver=gibbs leaves them")
    with refusing_foreign(path, "draws of this package"):
        arrays = safetensors.numpy.load_file(path)
        draws = _unnamed(arrays)
        for name, array in _named(draws).items():
            if array.dtype != np.float32 or not np.isfinite(array).all():
                raise ValueError(f"expected {name} as finite float32, got {array.dtype}")
        num_draws, num_rows, width = draws.rows.shape
        num_columns = draws.columns.shape[1]
        shapes = {
            "rows": (max(num_draws, 1), num_rows, max(width, 1)),
            "columns": (num_draws, num_columns, width),
            "row_shares": (num_draws, num_rows),
            "column_shares": (num_draws, num_columns),
            "alpha": (num_draws,),
        }
        if draws.thresholds.size:
            shapes["thresholds"] = num_draws, draws.thresholds.shape[1]
        for name, shape in shapes.items():
            array = getattr(draws, name)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
        for name in ("row_shares", "column_shares", "alpha"):
            if (getattr(draws, name) <= 0).any():
                raise ValueError(f"expected positive {name}: they are precisions")
        scale, levels = arrays["scale"], arrays.get("levels", np.zeros(0))
        if scale.shape != (len(Scale._fields) - 1,) or not np.isfinite(scale).all():
            raise ValueError(f"expected a scale of {len(Scale._fields) - 1} finite numbers")
        if levels.shape != (draws.thresholds.shape[1] + bool(draws.thresholds.size),):
            raise ValueError(f"expected a level more than thresholds, got {len(levels)} levels")
        return NamedDraws(
            draws,
            Scale(*scale.tolist(), levels=tuple(levels.tolist())),
            decode_ids(arrays["row_ids"], num_rows),
            decode_ids(arrays["column_ids"], num_columns),
            (
                _recipe(arrays, _RECIPES[0], num_columns, draws.row_prior),
                _recipe(arrays, _RECIPES[1], num_rows, draws.column_prior),
            ),
            _unnamed_groups(arrays, draws.effects),
        )


def _named_recipe(side: str, recipe: Recipe) -> dict[str, np.ndarray]:
    """Without the features of the rows that were sampled."""
    codings = json.dumps([coding._asdict() for coding in recipe.given.codings])
    arrays = {
        **{f"pattern.{name}": getattr(recipe.pattern, name) for name in _OF_PATTERN},
        **{f"given.{name}": getattr(recipe.given, name) for name in _OF_TABLE},
        "given.codings": np.frombuffer(codings.encode(), np.uint8),
        "noise_shape": np.array([recipe.noise_shape]),
    }
    return {f"{side}.{name}": np.ascontiguousarray(array) for name, array in arrays.items()}


def _recipe(arrays: dict[str, np.ndarray], side: str, num_others: int, prior: Hyperprior) -> Recipe:
    of_pattern = {name: arrays[f"{side}.pattern.{name}"] for name in _OF_PATTERN}
    of_table = {name: arrays[f"{side}.given.{name}"] for name in _OF_TABLE}
    (noise_shape,) = arrays[f"{side}.noise_shape"].tolist()
    codings = tuple(
        Coding(held["name"], held["kind"], tuple(held["levels"]), bool(held["rest"]))
        for held in json.loads(arrays[f"{side}.given.codings"].tobytes())
    )
    counted, given = len(of_pattern["groups"]), sum(coding.width for coding in codings)
    shapes = [
        (of_pattern["projection"], (num_others, max(counted - 2, 0))),
        *((of_pattern[name], (counted,)) for name in ("centers", "scales")),
        *((of_table[name], (given,)) for name in _OF_TABLE),
        (
            prior.coefficients,
            (*prior.coefficients.shape[:1], 1 + counted + given, prior.precision.shape[-1]),
        ),
    ]
    for array, shape in shapes:
        if array.shape != shape or not np.isfinite(array).all():
            raise ValueError(
                f"expected {side} as finite numbers of shape {shape}, got {array.shape}"
            )
    if min(of_pattern["scales"].min(initial=1), of_table["scales"].min(initial=1)) <= 0:
        raise ValueError(f"expected positive scales in {side}")
    if not np.isfinite(noise_shape) or noise_shape < 0:
        raise ValueError(
            f"expected a shape of the noise of {side} of at least 0, got {noise_shape}"
        )
    return Recipe(
        SideFeatures(np.zeros((0, counted), np.float32), **of_pattern),
        GivenFeatures(np.zeros((0, given), np.float32), codings=codings, **of_table),
        noise_shape,
    )


def _named(draws: Draws) -> dict[str, np.ndarray]:
    arrays = draws._asdict()
    for part in (*_PRIORS, "effects"):
        held = arrays.pop(part)
        arrays |= {f"{part}.{name}": array for name, array in held._asdict().items()}
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def _unnamed(arrays: dict[str, np.ndarray]) -> Draws:
    of_rows, of_columns = (
        Hyperprior(*(arrays[f"{side}.{name}"] for name in Hyperprior._fields)) for side in _PRIORS
    )
    # Files written before there were thresholds and effects have none.
    none = np.zeros((len(arrays["alpha"]), 0), np.float32)
    optional = ("thresholds", *(f"effects.{name}" for name in EntryEffects._fields))
    thresholds, *effects = (arrays.get(name, none) for name in optional)
    nested = (*_PRIORS, "thresholds", "effects")
    plain = {name: arrays[name] for name in Draws._fields if name not in nested}
    return Draws(
        **plain,
        row_prior=of_rows,
        column_prior=of_columns,
        thresholds=thresholds,
        effects=EntryEffects(*effects),
    )


def _named_groups(groups: tuple[Group, ...]) -> dict[str, np.ndarray]:
    """Their features and sides as a list, and the arrays of each by its number."""
    if not groups:
        return {}
    names = [name for group in groups for name in (group.feature, group.side)]
    arrays = {"groups": encode_ids(np.array(names, object))}
    for g, group in enumerate(groups):
        words = group.cuts.dtype == object
        arrays[f"groups.{g}.cuts"] = encode_ids(group.cuts) if words else group.cuts
        arrays[f"groups.{g}.keys"] = group.keys
    return arrays


def _unnamed_groups(arrays: dict[str, np.ndarray], effects: EntryEffects) -> tuple[Group, ...]:
    """Undoes `_named_groups`.

    Raises:
      ValueError: there are not as many effects as the groups have.
    """
    num_effects, num_groups = (x.shape[-1] for x in effects)
    names = decode_ids(arrays["groups"], 2 * num_groups).tolist() if num_groups else []
    groups = []
    for g in range(num_groups):
        cuts, keys = arrays[f"groups.{g}.cuts"], arrays[f"groups.{g}.keys"]
        if cuts.dtype == np.uint8:
            cuts = decode_ids(cuts, None)
        groups.append(Group(names[2 * g], names[2 * g + 1], cuts, keys))
    if num_effects != sum(len(group.keys) for group in groups):
        raise ValueError(f"expected the keys of {num_effects} effects")
    return tuple(groups)
