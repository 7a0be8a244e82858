"""The methods of the comparison: the one table that names them.

Another method is one file, with its equation and reference, and one line here.
"""

from metamf_jax.baselines import (
    autorec_item,
    autorec_user,
    bayes,
    bayes_learned,
    bias,
    deep_mf,
    eml,
    finetune,
    iterative,
    knn,
    maml,
    mean,
    metamf,
    metamf_bayes,
    mf,
    neural_mf,
    soft_impute,
)
from metamf_jax.baselines.method import Method, MethodOf, alone
from metamf_jax.meta_learning.meta_loss import ModelConfig

METHODS: dict[str, MethodOf] = {
    "metamf": metamf.method,
    "mean": alone(mean),
    "bayes": alone(bayes),
    "bayes_learned": lambda config: bayes_learned.METHOD,
    "bias": alone(bias),
    "mf": alone(mf),
    "soft_impute": alone(soft_impute),
    "knn": alone(knn, on_host=True),
    "iterative": alone(iterative),
    "eml": eml.method,
    "finetune": finetune.method,
    "maml": maml.method,
    "autorec_user": alone(autorec_user),
    "autorec_item": alone(autorec_item),
    "deep_mf": alone(deep_mf),
    "neural_mf": alone(neural_mf),
    "metamf_bayes": metamf_bayes.method,
    **metamf.VARIANTS,
}

# What every run of meta-training is compared with: they take no time.
SIMPLE = ("mean", "bias", "mf")


def make_method(name: str, config: ModelConfig | None = None) -> Method:
    """The method of that name.

    Args:
      name: a key of `METHODS`.
      config: sizes of the meta-learned methods; the default for those that learn nothing.

    Raises:
      ValueError: no such method; the message lists those that there are.
    """
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}; there are {', '.join(METHODS)}")
    return METHODS[name](config or ModelConfig())
