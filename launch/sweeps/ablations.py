"""One change of the encoder or of the inner loop at a time, from the ``paper`` preset; 5 splits."""

from launch.points import Plot, Sweep

_CHANGES = {
    "none": (),
    **{f"{steps} steps": (f"model.inner.steps={steps}",) for steps in (0, 1, 3, 30)},
    **{
        f"{form} steps": (f"model.inner.step_form={form}",)
        for form in ("scaled", "curvature", "ridge")
    },
    "precision per row": ("model.encoder.precision=per_row",),
    "bias model inside": ("model.encoder.effects=true", "model.inner.step_form=curvature"),
    **{f"{layers} layers": (f"model.encoder.layers={layers}",) for layers in (1, 2, 5)},
    **{f"rank {rank}": (f"model.encoder.rank={rank}",) for rank in (4, 8, 64)},
    "8 channels": ("model.encoder.channels=8",),
}

SWEEP = Sweep(
    "experiments.train",
    [
        {
            "dataset": dataset,
            "preset": "paper",
            "override": change,
            "seed": split,
            "split_seed": split,
        }
        for dataset in ("ml100k", "ml1m", "jester")
        for change in _CHANGES.values()
        for split in range(5)
    ],
    title="Ablations: query error after one change of the paper preset",
    metrics=["results.test_mse", "results.bias_mse", "results.mf_mse", "results.steps_per_second"],
    plots=[
        Plot("override", "results.test_mse", by="dataset"),
        Plot("override", "results.steps_per_second", by="dataset"),
    ],
)
