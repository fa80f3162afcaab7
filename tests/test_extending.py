"""The skeleton of the documentation is a posterior like those of the package."""

import inspect
import sys

import pytest
import test_conformance as conformance
import torch
from problems import flat_problem
from test_docs import DOCS

sys.path.append(str(DOCS))
from skeleton import AnchoredEnsemble

CASE = conformance.Case(AnchoredEnsemble, {"n_members": 4, "n_steps": 30})
CHECKS = {
    name: check
    for name, check in vars(conformance).items()
    if name.startswith("test_") and "case" in inspect.signature(check).parameters
}
pytestmark = pytest.mark.filterwarnings("ignore:.*not at a minimum")


@pytest.mark.parametrize("name", CHECKS)
def test_the_skeleton_passes_what_every_method_passes(name, request):
    assert len(CHECKS) > 10
    given = {"case": CASE, "subset": "last_layer"}
    needed = inspect.signature(CHECKS[name]).parameters
    CHECKS[name](**{n: given[n] if n in given else request.getfixturevalue(n) for n in needed})


def test_without_data_its_members_are_draws_from_the_prior():
    model, data = flat_problem(p=2000)
    la = AnchoredEnsemble(model, "regression", prior_precision=4.0, prior_mean=1.0, n_members=20, n_steps=300, lr=0.05)
    la.fit(data)
    members = la.sample(20)
    torch.testing.assert_close(members.mean(), torch.tensor(1.0, dtype=members.dtype), rtol=0, atol=0.02)
    torch.testing.assert_close(members.std(), torch.tensor(0.5, dtype=members.dtype), rtol=0.02, atol=0)
