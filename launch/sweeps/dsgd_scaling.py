"""DSGD over devices, blocks and ranks. Run it with ``--workers=1``: points measure time."""

from launch.points import Plot, Sweep, grid

SWEEP = Sweep(
    "experiments.factorize",
    [
        {
            "dataset": "ml1m",
            "solver": "dsgd",
            "epochs": 10,
            "step_size": "bold_driver:0.02",
            "regularization": 0.05,
            "biases": False,
            "init": "uniform",
            "evaluate_every": 1,
            **point,
        }
        for point in (
            # More workers on the same blocks, then finer blocks on one device, then ranks.
            *grid(devices=[1, 2, 4, 8], blocks=[8], rank=[32]),
            *grid(devices=[1], blocks=[1, 2, 4, 16, 32], rank=[32]),
            *grid(devices=[1, 2], blocks=[8], rank=[8, 16, 64, 128]),
        )
    ],
    title="DSGD: devices, blocks and ranks",
    metrics=["results.updates_per_second", "results.test_rmse", "results.objective"],
    plots=[
        Plot("devices", "results.updates_per_second", by="rank", log_x=True),
        Plot("blocks", "results.updates_per_second", by="devices", log_x=True),
        Plot("blocks", "results.objective", by="rank", log_x=True),
        Plot("rank", "results.test_rmse", by="blocks", log_x=True),
    ],
)
