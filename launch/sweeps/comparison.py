"""Every method of the literature on three data sets: 10 splits each, the ``paper`` preset."""

from launch.points import Plot, Sweep, grid

_METHODS = (
    *("metamf", "metamf_bayes", "mean", "bayes", "bayes_learned", "bias", "mf", "soft_impute"),
    *("knn", "iterative", "eml", "finetune", "maml", "autorec_user", "autorec_item", "deep_mf"),
    "neural_mf",
)

SWEEP = Sweep(
    "experiments.compare_methods",
    grid(
        dataset=["ml100k", "ml1m", "jester"],
        methods=[[method] for method in _METHODS],
        splits=[10],
        preset=["paper"],
    ),
    title="Methods of the literature: query error on matrices that share no rows or columns",
    metrics=["results.table.*.mse.0", "results.table.*.mse.1"],
    plots=[Plot("methods", "results.table.*.mse.0", by="dataset")],
)
