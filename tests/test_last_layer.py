"""The Bayesian last layer is laplace-torch's own."""

import copy

import pytest
import torch
from laplace import FullLLLaplace, Laplace
from problems import classifier, regressor

from laplace_fiber import baselines


@pytest.mark.parametrize("likelihood", ["classification", "regression"])
def test_it_is_the_full_last_layer_flavour(likelihood):
    model, data = classifier() if likelihood == "classification" else regressor()
    x, options = data.dataset.tensors[0], {"prior_precision": 3.0, "temperature": 0.9}
    made = [
        FullLLLaplace(copy.deepcopy(model), likelihood, **options),
        baselines.bayesian_last_layer(model, likelihood, **options),
        Laplace(model, likelihood, subset_of_weights="last_layer", hessian_structure="bll", **options),
        Laplace(model, likelihood, hessian_structure="bll", **options),
    ]
    for la in made:
        assert type(la) is FullLLLaplace
        la.fit(data)
        torch.testing.assert_close(la(x), made[0](x), rtol=0, atol=0)
        torch.testing.assert_close(la.posterior_covariance, made[0].posterior_covariance, rtol=0, atol=0)


def test_arguments_go_through():
    la = Laplace(classifier()[0], "classification", "last_layer", "bll", last_layer_name="2")
    assert la._last_layer_name == "2"


def test_the_stock_table_is_left_alone():
    model, _ = classifier()
    assert type(Laplace(model, "classification", "last_layer", "full")) is FullLLLaplace
