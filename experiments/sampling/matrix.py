"""The matrix whose posterior is sampled: read from a table, or in a block store; with features."""

import pathlib
import shutil
from typing import NamedTuple

import numpy as np

from experiments import splits, stores
from experiments.sampling.config import Config
from metamf_jax.data import sources, tables
from metamf_jax.data.tables.features import read_features
from metamf_jax.factorization.block_store import BlockStore
from metamf_jax.factorization.dsgd import DsgdConfig
from metamf_jax.posterior import chains, draws_file, entry_effects, fit, gibbs, langevin, pattern
from metamf_jax.posterior.entry_effects import Group, Places
from metamf_jax.posterior.fold_in import Recipe
from metamf_jax.posterior.given import GivenFeatures, given_features, none_given
from metamf_jax.posterior.langevin import LangevinConfig
from metamf_jax.posterior.predictive import Scale
from metamf_jax.runs import resources
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries

# What a chain on a block store holds: so many times the factors, and strata.
_COPIES, _STRATA, _ENTRY_BYTES = 16, 4, 12


class Matrix(NamedTuple):
    """The matrix, and what it is judged by.

    Attributes:
      train: the entries, standardised; or the store that has them.
      scale: of the values.
      levels: the distinct values; None of a store.
      test: held-out entries, as they are.
      ids: names of rows and columns.
      given: features of both, from the user's tables.
      groups: of effects of the entries.
      effects: which effects the training entries have; None without such.
      test_effects: [G, T], `Places.at` of the test entries; likewise.
    """

    train: Entries | BlockStore
    scale: Scale
    levels: np.ndarray | None
    test: Entries
    ids: tuple[np.ndarray, np.ndarray]
    given: tuple[GivenFeatures, GivenFeatures]
    groups: tuple[Group, ...] = ()
    effects: Places | None = None
    test_effects: np.ndarray | None = None


def read(config: Config, num_devices: int, data_dir: str | None) -> Matrix:
    """The matrix of a table, or in a block store.

    Raises:
      ValueError: the data cannot be read or split, or leave nothing to sample from.
    """
    if config.block_store is not None:
        return _read_store(config, num_devices, data_dir)
    table = sources.load(config.dataset, data_dir, config.seed)
    train, test = splits.split_table(table, splits.of_config(config), data_dir)
    entries = train.entries
    if len(entries.values) == 0:
        raise ValueError(f"{config.dataset} leaves no entries to sample from; hold out fewer")
    scale = fit.scale_of(entries.values, config.likelihood)
    listed = fit.standardised(entries, scale)
    levels = np.unique(entries.values)
    ids = train.row_ids, train.column_ids
    matrix = Matrix(listed, scale, levels, test.entries, ids, _given(config, ids))
    if not config.entry_features:
        return matrix
    groups = entry_effects.make_groups(listed.rows, listed.columns, train.entry_features)
    effects, of_test = (
        entry_effects.places(groups, part.entries.rows, part.entries.columns, part.entry_features)
        for part in (train, test)
    )
    return matrix._replace(groups=groups, effects=effects, test_effects=of_test.at)


def _read_store(config: Config, num_devices: int, data_dir: str | None) -> Matrix:
    """Opens or builds the block store."""
    assert config.block_store is not None
    store = stores.opened(
        config.block_store,
        config.dataset,
        data_dir,
        config.test_fraction,
        _cut(config, num_devices),
        langevin.cut_width(config.model),
    )
    store, scale = fit.standardised_store(store)
    ids = store.ids()
    return Matrix(store, scale, None, store.test, ids, _given(config, ids))


def _given(
    config: Config, ids: tuple[np.ndarray, np.ndarray]
) -> tuple[GivenFeatures, GivenFeatures]:
    """What the user's tables tell of rows and columns."""
    return (
        _given_of_side(config.row_features, "row", ids[0]),
        _given_of_side(config.column_features, "column", ids[1]),
    )


def _given_of_side(path: str | None, side: str, ids: np.ndarray) -> GivenFeatures:
    """What the user's table tells of the rows (or columns) with these ids."""
    if path is None:
        return none_given(len(ids))
    table = read_features(path, side)
    lines = tables.positions(ids, table.ids)
    found, told = given_features(table, lines), int((lines >= 0).sum())
    print(
        f"{found.features.shape[1]} features of {path} for {told} of {len(ids)} {side}s; the others"
        f" are taken for average, {len(table.ids) - told} lines are of further {side}s"
    )
    return found


def prepare(
    config: Config, matrix: Matrix, num_devices: int, log: RunLog
) -> tuple[chains.Data, tuple[Recipe, Recipe]]:
    """Deals out the matrix, with its features; and how those of further rows are computed."""
    count, entries = config.pattern_features, matrix.train
    if isinstance(entries, BlockStore):
        features = pattern.count_features(entries.row_count, entries.column_count)
    else:
        if count is None:
            count = fit.num_pattern_vectors(entries)
            log.print(f"{count} singular vectors of the pattern of {len(entries.values)} entries")
        features = fit.features_of(entries, count, config.seed)
    model, (of_sides, groups) = config.model, fit.joined(features, matrix.given)
    recipes = (
        Recipe(features[0], matrix.given[0], model.row_noise),
        Recipe(features[1], matrix.given[1], model.column_noise),
    )
    if isinstance(model, LangevinConfig):
        cut = _cut(config, num_devices)
        return langevin.prepare(entries, of_sides, groups, model, cut), recipes
    assert not isinstance(entries, BlockStore)
    prepared = gibbs.prepare(
        entries, of_sides, groups, model, num_devices, config.backend, matrix.effects
    )
    return prepared, recipes


def _cut(config: Config, num_devices: int) -> DsgdConfig:
    """How Langevin dynamics cuts the matrix."""
    return DsgdConfig(
        num_blocks=config.blocks,
        num_devices=num_devices,
        backend=config.backend,
        seed=config.seed,
    )


def require_room(config: Config, matrix: Matrix, workdir: pathlib.Path) -> None:
    """Refuses draws for which there is no memory or no disk.

    Raises:
      ValueError: telling what they need and what is free.
    """
    if (workdir / "draws.safetensors").exists():
        return
    shape, num_effects = matrix.train.shape, sum(len(group.keys) for group in matrix.groups)
    needed = draws_file.size_in_bytes(shape, config.rank, config.draws, num_effects)
    there = sum(path.stat().st_size for path in workdir.glob("draws/*.safetensors"))
    folder = next(p for p in (workdir.absolute(), *workdir.absolute().parents) if p.exists())
    memory, disk = resources.available_memory_bytes(), shutil.disk_usage(folder).free
    lacking, running = [], _running_bytes(config, matrix, needed // config.draws)
    if memory is not None and needed + running > memory:
        beside = f" beside {running / 1e9:.1f} GB for the chains" if running else ""
        lacking.append(
            f"{needed / 1e9:.1f} GB of memory{beside}, of which {memory / 1e9:.1f} are free"
        )
    # One file each, and then all in one.
    if 2 * needed - there > disk:
        lacking.append(
            f"{(2 * needed - there) / 1e9:.1f} GB on the disk of {folder}, of which"
            f" {disk / 1e9:.1f} are free"
        )
    if lacking:
        raise ValueError(
            f"{config.draws} draws of {shape[0]} rows and {shape[1]} columns at rank"
            f" {config.rank} need {' and '.join(lacking)}; take fewer --draws or a smaller --rank"
        )


def _running_bytes(config: Config, matrix: Matrix, bytes_of_draw: int) -> int:
    """About what the chains of Langevin dynamics from a store take, beside the draws they leave."""
    store = matrix.train
    if not isinstance(store, BlockStore):
        return 0
    longest = int((store.offsets[:, :, -1] - store.offsets[:, :, 0]).max())
    of_strata = _STRATA * _ENTRY_BYTES * len(store.own) * longest
    return config.chains * (_COPIES * bytes_of_draw + of_strata)
