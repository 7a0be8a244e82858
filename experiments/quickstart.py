"""Meta-trains, imputes unseen matrices of other sizes, and shows a table and plots.

    bash launch/quickstart.sh
    bash launch/quickstart.sh --dataset=ml100k --data_dir=DIR

Claim: priors learned from 30 x 30 matrices impute unseen matrices of other sizes with less error
than the mean, the bias model and plain matrix factorization of each matrix alone, all tuned on
validation matrices. The README has the table that this prints.
"""

import pathlib

from experiments import common, train
from metamf_jax import plotting, processes
from metamf_jax.baselines import SIMPLE, make_method, tuning
from metamf_jax.data import sources
from metamf_jax.imputation.prior import load_prior
from metamf_jax.meta_learning import meta_loss, training
from metamf_jax.meta_learning.episodes import (
    EpisodeConfig,
    EpisodeSource,
    entry_counts,
    split_parts,
)
from metamf_jax.metrics import mean_and_standard_error

_SIDES = ((20, 20), (40, 60), (80, 80))
_MATRICES = 100


def run(config: train.Config, workdir: pathlib.Path, data_dir: str | None) -> None:
    """Trains in ``workdir``, or reuses the run that is there, then scores other sizes.

    Of several processes the first alone scores.
    """
    train.run(config, workdir, data_dir)
    if not processes.is_first():
        return
    prior = load_prior(workdir)
    model = meta_loss.make_model(prior.config)
    evaluate = training.make_evaluate(
        lambda params, episode: meta_loss.episode_loss(model, params, episode)
    )
    parts = split_parts(
        sources.load(config.dataset, data_dir, config.seed).entries, config.split_seed
    )
    print(f"\nQuery MSE on {_MATRICES} unseen matrices of each size, +- standard error")
    names = ["metamf", *SIMPLE]
    print(f"{'rows x columns':<16}{'observed':>9}" + "".join(f"{name:>18}" for name in names))
    table: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for rows, columns in _SIDES:
        episodes = EpisodeConfig(rows=(rows, rows), columns=(columns, columns))

        def draw(part, seed, episodes=episodes):
            return EpisodeSource(part, episodes, seed).draw_batch(0, _MATRICES)

        validation, test = draw(parts.validation, 1), draw(parts.test, 2)
        errors = {"metamf": evaluate(prior.params, test)}
        for name in SIMPLE:
            method = make_method(name)
            errors[name] = tuning.episode_errors(method, test, tuning.tune(method, validation))
        for name in names:
            table[name].append(mean_and_standard_error(errors[name]))
        observed = entry_counts(test.support).mean()
        told = "".join("{:>9.3f} +- {:.3f}".format(*table[name][-1]) + "  " for name in names)
        print(f"{f'{rows} x {columns}':<16}{observed:>9.0f}{told}", flush=True)
    path = workdir / "plots" / "other_sizes.png"
    plotting.error_by_group(path, [f"{rows} x {columns}" for rows, columns in _SIDES], table)
    print(f"\nplots: {workdir / 'plots'}")
    print(
        "impute a table of your own:\n  source .venv/bin/activate && metamf impute FILE.csv "
        f"--weights={workdir} --output=completed.csv"
    )


def main() -> None:
    config = train.config_from_flags()
    name = pathlib.Path(config.dataset).stem
    workdir = pathlib.Path(common.WORKDIR.value or f"runs/quickstart-{name}")
    run(config, workdir, common.DATA_DIR.value)


if __name__ == "__main__":
    common.run_main(main, several_processes=True)
