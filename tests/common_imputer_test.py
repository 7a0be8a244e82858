"""scikit-learn's own tests of its imputers, with ours in their list; all but those of sparse input.

There the entries that are not stored are missing, here as in no imputer of scikit-learn's.
"""

import pytest
from sklearn.impute.tests import test_common as common

from metamf_jax import MetaMFImputer

LISTED = {
    name: test
    for name, test in vars(common).items()
    if name.startswith("test_") and "sparse" not in name
}


def cases():
    """The tests with all their parameters but the imputers, which are ours."""
    found = []
    for name, test in LISTED.items():
        given = [{}]
        for mark in test.pytestmark:
            if mark.name == "parametrize" and mark.args[0] != "imputer":
                given = [{**one, mark.args[0]: value} for one in given for value in mark.args[1]]
        found += [pytest.param(test, one, id=f"{name}-{one}") for one in given]
    return found


@pytest.mark.parametrize(("test", "given"), cases())
def test_common(test, given):
    test(imputer=MetaMFImputer(), **given)


def test_there_are_as_many_as_there_were():
    assert len(LISTED) >= 6
