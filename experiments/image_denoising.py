"""Restores noisy and partly missing grey images by factorization at rising rank.

Claim: a picture is nearly of low rank while noise is not, so that the restored picture comes closer
to the original than the damaged one, best at some middle rank: below it details are lost, above it
noise comes back.

    python -m experiments.image_denoising --workdir=runs/images
    python -m experiments.image_denoising --image=photo.png --workdir=runs/photo

The pixels left are the entries of a matrix, centred and factorized by ALS under an l2 penalty. The
workdir receives ``plots/restored.png``, ``plots/psnr.png`` and the numbers in ``summary.json``.
"""

import dataclasses
import os
import time
from typing import Any

import numpy as np
from absl import flags

from experiments import common
from metamf_jax import plotting
from metamf_jax.data import images
from metamf_jax.factorization import als, solver
from metamf_jax.factorization.objective import Objective, make_terms
from metamf_jax.factorization.step_size import StepSize
from metamf_jax.runs.run_log import RunLog
from metamf_jax.types import Entries, FactorPrior, Factors

_IMAGE = flags.DEFINE_string(
    "image", images.DRAWN, f"{images.DRAWN}, {', '.join(images.SAMPLES)}, or a PNG file."
)
_NOISE = flags.DEFINE_float("noise", 0.1, "Deviation of the noise; the white of the image is 1.")
_MISSING = flags.DEFINE_float("missing", 0.5, "Part of the pixels left out, 0 to 0.99.")
_SHRINKAGE = flags.DEFINE_float(
    "shrinkage", 0.25, "The penalty as a part of what would remove all noise."
)

_PRESETS = {
    "smoke": {"side": 24, "ranks": (1, 4), "epochs": 4},
    "tiny": {"side": 128, "ranks": (1, 2, 4, 8, 16, 32), "epochs": 15},
    "paper": {"side": 256, "ranks": (1, 2, 4, 8, 16, 32, 64), "epochs": 30},
    "best": {"side": 512, "ranks": (1, 2, 4, 8, 16, 32, 64, 128), "epochs": 30},
}
# What an image without noise is thought to have, so that its penalty is not zero.
_LEAST_NOISE = 0.02
# Pictures side by side, besides the original and the damaged one.
_SHOWN = 4


@dataclasses.dataclass(frozen=True)
class Config:
    """One image and what is done to it; the names are those of the flags.

    Attributes:
      image: see `images.load_image`.
      side: greatest height and width.
      noise: standard deviation.
      missing: part of the pixels.
      ranks: rising.
      shrinkage: see `penalty`.
      epochs: of ALS.
      seed: of damage and start.
    """

    image: str = images.DRAWN
    side: int = 128
    noise: float = 0.1
    missing: float = 0.5
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    shrinkage: float = 0.25
    epochs: int = 15
    seed: int = 0


def penalty(entries: Entries, noise: float, shrinkage: float) -> float:
    """``lam`` of an l2 penalty, a part of what would remove all noise.

    ``lam (|U|^2 + |V|^2)`` takes ``lam`` off every singular value of the fitted matrix, and those
    of the noise at the observed pixels, a part p of all, are at most
    ``noise sqrt(p) (sqrt(N) + sqrt(M))``.
    """
    num_rows, num_columns = entries.shape
    part = len(entries.values) / (num_rows * num_columns)
    largest = np.sqrt(part) * (np.sqrt(num_rows) + np.sqrt(num_columns))
    return float(shrinkage * max(noise, _LEAST_NOISE) * largest)


def restore(
    entries: Entries, rank: int, weight: float, epochs: int, seed: int, width: int = 0
) -> np.ndarray:
    """The image from its observed pixels.

    Args:
      entries: E pixels.
      rank: K.
      weight: ``lam``.
      epochs: of ALS.
      seed: of the start.
      width: the greatest rank to come, so that one compiled program serves all. Factors are filled
        up to it with zeros, which a ridge solve leaves at zero.

    Returns:
      [H, W], from 0 to 1.
    """
    # As a prior the penalty is data, and every strength runs the same compiled program.
    objective = Objective("squared", "prior")
    entries, mean = solver.centre(objective, entries)
    width = max(rank, width)
    prior = FactorPrior(
        *(np.zeros((size, width), np.float32) for size in entries.shape),
        *(np.full(size, weight, np.float32) for size in entries.shape),
    )
    terms = make_terms(objective, entries, prior)
    rng = np.random.default_rng(seed)
    start = solver.initial_factors(objective, entries, terms, width, rng)
    start = Factors(*(np.where(np.arange(width) < rank, f, 0) for f in start))
    method = als.make_solver(objective, entries, prior)
    factors, _ = solver.fit(method, start, StepSize(), epochs)
    return np.clip(factors.u @ factors.v.T + mean, 0, 1)


def as_picture(entries: Entries) -> np.ndarray:
    """[H, W], NaN where a pixel is missing."""
    picture = np.full(entries.shape, np.nan, np.float32)
    picture[entries.rows, entries.columns] = entries.values
    return picture


def run(config: Config, workdir: str | os.PathLike) -> dict[str, Any]:
    """Damages and restores; returns what ``summary.json`` holds.

    Raises:
      ValueError: the image cannot be read, or a number is out of range.
      FileNotFoundError: there is no such image.
    """
    image = images.load_image(config.image, config.side)
    cases = {"noise": (config.noise, 0.0), "missing": (0.0, config.missing)}
    cases["both"] = (config.noise, config.missing)
    damages = {}
    for name, (noise, missing) in cases.items():
        rng = np.random.default_rng(config.seed)
        damages[name] = images.damaged(image, noise, missing, rng)
    ranks = [rank for rank in config.ranks if rank <= min(image.shape)]
    log = RunLog(workdir, "image_denoising", config)
    restored = {name: {} for name in cases}
    results = {"shape": list(image.shape), "damaged": {}, "restored": {}}
    for name, entries in damages.items():
        weight = penalty(entries, cases[name][0], config.shrinkage)
        # A missing pixel counts as the mean of the others.
        filled = np.where(np.isnan(as_picture(entries)), entries.values.mean(), as_picture(entries))
        results["damaged"][name] = images.psnr(image, filled)
        results["restored"][name] = {}
        log.print(f"{name}: PSNR {results['damaged'][name]:.2f} dB damaged")
        for rank in ranks:
            begin = time.perf_counter()
            picture = restore(entries, rank, weight, config.epochs, config.seed, ranks[-1])
            restored[name][rank] = picture
            found = images.psnr(image, picture)
            results["restored"][name][str(rank)] = found
            seconds = time.perf_counter() - begin
            log.print(f"{name}: PSNR {found:.2f} dB at rank {rank}, in {seconds:.1f} s")
    names = {
        "noise": f"noise of deviation {config.noise:g}",
        "missing": f"{config.missing:.0%} missing",
        "both": "noise and missing pixels",
    }
    shown = ranks if len(ranks) <= _SHOWN else ranks[-_SHOWN:]
    rows = {}
    for name in cases:
        found = results["restored"][name]
        rows[names[name]] = {
            "original": image,
            f"damaged (missing: red)\n{results['damaged'][name]:.1f} dB": as_picture(damages[name]),
            **{f"rank {rank}\n{found[str(rank)]:.1f} dB": restored[name][rank] for rank in shown},
        }
    plotting.pictures(log.plot_path("restored"), rows)
    curves = {names[n]: (ranks, [results["restored"][n][str(r)] for r in ranks]) for n in cases}
    plotting.panels(
        log.plot_path("psnr"),
        [
            plotting.Panel(
                "restored (solid) and damaged (dotted)",
                "rank",
                "PSNR (dB)",
                curves,
                levels={names[name]: results["damaged"][name] for name in cases},
                x_scale="log2",
            )
        ],
        f"{config.image}, {image.shape[0]} x {image.shape[1]} pixels",
    )
    log.print(f"wrote {log.plot_path('restored')}, psnr.png and summary.json")
    return log.finish(results)


def main() -> None:
    workdir = common.needed(common.WORKDIR)
    config = Config(
        image=_IMAGE.value,
        noise=_NOISE.value,
        missing=_MISSING.value,
        shrinkage=_SHRINKAGE.value,
        seed=common.SEED.value,
        **_PRESETS[common.PRESET.value],
    )
    run(config, workdir)


if __name__ == "__main__":
    common.run_main(main)
