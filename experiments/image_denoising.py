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
from typing import Any, NamedTuple

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
      epochs: sweeps of ALS.
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


class _Case(NamedTuple):
    """A kind of damage: its title, deviation of the noise, and part of the pixels missing."""

    title: str
    noise: float
    missing: float


class _Restoration(NamedTuple):
    """What became of one damage.

    Attributes:
      damaged: the picture, NaN where a pixel is missing.
      damaged_psnr: in dB.
      pictures: restored, by rank.
      psnrs: theirs, in dB.
    """

    damaged: np.ndarray
    damaged_psnr: float
    pictures: dict[int, np.ndarray]
    psnrs: dict[int, float]


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
      epochs: sweeps of ALS.
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
    cases = {
        "noise": _Case(f"noise of deviation {config.noise:g}", config.noise, 0.0),
        "missing": _Case(f"{config.missing:.0%} missing", 0.0, config.missing),
        "both": _Case("noise and missing pixels", config.noise, config.missing),
    }
    damaged = {
        name: images.damaged(image, case.noise, case.missing, np.random.default_rng(config.seed))
        for name, case in cases.items()
    }
    ranks = [rank for rank in config.ranks if rank <= min(image.shape)]
    log = RunLog(workdir, "image_denoising", config)
    restorations = {}
    for name, entries in damaged.items():
        # A missing pixel counts as the mean of the others.
        filled = np.where(np.isnan(as_picture(entries)), entries.values.mean(), as_picture(entries))
        psnr = images.psnr(image, filled)
        log.print(f"{name}: PSNR {psnr:.2f} dB damaged")
        pictures, psnrs = {}, {}
        weight = penalty(entries, cases[name].noise, config.shrinkage)
        for rank in ranks:
            begin = time.perf_counter()
            pictures[rank] = restore(entries, rank, weight, config.epochs, config.seed, ranks[-1])
            psnrs[rank] = images.psnr(image, pictures[rank])
            seconds = time.perf_counter() - begin
            log.print(f"{name}: PSNR {psnrs[rank]:.2f} dB at rank {rank}, in {seconds:.1f} s")
        restorations[cases[name].title] = _Restoration(as_picture(entries), psnr, pictures, psnrs)
    _plot(log, config.image, image, restorations)
    log.print(f"wrote {log.plot_path('restored')}, psnr.png and summary.json")
    results = dict(zip(cases, restorations.values(), strict=True))
    return log.finish(
        {
            "shape": list(image.shape),
            "damaged": {name: each.damaged_psnr for name, each in results.items()},
            "restored": {
                name: {str(rank): psnr for rank, psnr in each.psnrs.items()}
                for name, each in results.items()
            },
        }
    )


def _plot(log: RunLog, name: str, image: np.ndarray, restorations: dict[str, _Restoration]) -> None:
    rows, curves = {}, {}
    for title, (damaged, damaged_psnr, pictures, psnrs) in restorations.items():
        rows[title] = {
            "original": image,
            f"damaged (missing: red)\n{damaged_psnr:.1f} dB": damaged,
            **{f"rank {r}\n{psnrs[r]:.1f} dB": pictures[r] for r in list(pictures)[-_SHOWN:]},
        }
        curves[title] = list(psnrs), list(psnrs.values())
    plotting.pictures(log.plot_path("restored"), rows)
    panel = plotting.Panel(
        "restored (solid) and damaged (dotted)",
        "rank",
        "PSNR (dB)",
        curves,
        levels={title: each.damaged_psnr for title, each in restorations.items()},
        x_scale="log2",
    )
    size = f"{image.shape[0]} x {image.shape[1]} pixels"
    plotting.panels(log.plot_path("psnr"), [panel], f"{name}, {size}")


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
