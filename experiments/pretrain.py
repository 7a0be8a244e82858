"""Learns the priors that the package ships, from synthetic families of matrices.

Claim: a prior learned from synthetic ratings, surveys, sensor tables, images and feature tables
imputes real matrices of none of these worlds. `experiments.benchmarks.imputer` measures it.

    python -m experiments.pretrain --preset=best --workdir=runs/pretrain \
        --output=metamf_jax/imputation/weights/general.safetensors

With --source=ratings it learns of rating matrices alone, cut from synthetic worlds of ratings
(`experiments.rating_episodes`); `experiments.zero_shot` measures what that is worth on real ones.

No file of data is read.
"""

import dataclasses

from absl import flags

from experiments import common, presets, pretraining, shared_flags

_OUTPUT = shared_flags.output()
_START = shared_flags.start()
_STEPS = flags.DEFINE_integer("steps", None, "Steps, instead of the preset's.", lower_bound=1)
_SOURCE = flags.DEFINE_enum(
    "source",
    "families",
    ["families", "ratings"],
    "Matrices of all families, or cut from worlds of ratings.",
)
_WORLDS = flags.DEFINE_integer("worlds", None, "So many worlds of ratings, used again and again.")
_OVERRIDE = shared_flags.override()


def main() -> None:
    config = dataclasses.replace(
        pretraining.PRESETS[common.PRESET.value], seed=common.SEED.value, start=_START.value
    )
    if _SOURCE.value == "ratings":
        config = pretraining.of_ratings(config, _WORLDS.value)
    changed = {"model": config.model, "training": config.training}
    config = dataclasses.replace(config, **presets.overridden(changed, _OVERRIDE.value))
    if _STEPS.value is not None:
        steps = dataclasses.replace(config.training, max_steps=_STEPS.value)
        config = dataclasses.replace(config, training=steps)
    pretraining.run(config, common.WORKDIR.value or f"runs/pretrain-{config.preset}", _OUTPUT.value)


if __name__ == "__main__":
    common.run_main(main)
