"""Weights in the package, in a run's workdir, and in files that hold none."""

import pytest

from metamf_jax.imputation import prior


def test_weights_of_another_kind(tmp_path):
    with pytest.raises(ValueError, match="does not exist"):
        prior.load_prior(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("no weights")
    with pytest.raises(ValueError, match="does not hold parameters"):
        prior.load_prior(tmp_path / "text.safetensors")


def test_the_package_carries_small_weights_and_their_card():
    assert "general" in prior.prior_names()
    assert (prior.FOLDER / "README.md").exists()
    sizes = [path.stat().st_size for path in prior.FOLDER.glob("*.safetensors")]
    assert sum(sizes) < 5e6
