"""A search for better sizes of the ``best`` preset; needs optuna.

The score is the validation error, so that the test matrices stay unseen.
"""

from launch.points import Plot, Search, Sweep


def _suggest(trial):
    def override(name, value):
        return f"{name}={value}"

    return {
        "dataset": "ml100k",
        "preset": "best",
        "override": (
            override("model.encoder.rank", trial.suggest_categorical("rank", [8, 16, 32, 64])),
            override("model.encoder.channels", trial.suggest_categorical("channels", [16, 32, 64])),
            override("model.encoder.layers", trial.suggest_int("layers", 1, 4)),
            override("model.inner.steps", trial.suggest_int("steps", 1, 20)),
            override(
                "model.inner.step_form",
                trial.suggest_categorical("step_form", ["scaled", "curvature", "ridge"]),
            ),
            override(
                "training.learning_rate", trial.suggest_float("learning_rate", 2e-4, 1e-2, log=True)
            ),
        ),
    }


SWEEP = Sweep(
    "experiments.train",
    search=Search(_suggest, "results.validation_mse", trials=60),
    title="Tuning of the best preset on MovieLens-100K",
    metrics=["results.validation_mse", "results.test_mse", "results.steps_per_second"],
    plots=[Plot("seconds", "results.validation_mse")],
)
