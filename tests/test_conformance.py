"""One body of tests over every posterior of the package: each can stand where a laplace-torch object stands."""

import copy
import io
from collections import UserDict
from dataclasses import dataclass, field

import pytest
import torch
from laplace import Laplace
from problems import FAST, classifier, loader, regressor
from torch import nn

from laplace_fiber import FiberLaplace, TrajectorySampler, baselines
from laplace_fiber.geometry import spread_report
from laplace_fiber.posterior import SampledPosterior


@dataclass(frozen=True)
class Case:
    """A method with settings that make it fast; what it does not have by its nature."""

    method: type[SampledPosterior]
    options: dict = field(default_factory=dict)
    subsets: bool = True
    weights: bool = True

    @property
    def predictions(self):
        return self.method.pred_types

    def build(self, model, likelihood, **options):
        return self.method(model, likelihood, **{**self.options, **options})


CASES = [
    Case(baselines.LaplaceMixture),
    Case(baselines.LaplaceDiffusion, {"n_steps": 3, "n_samples_fit": 12}),
    Case(baselines.KernelDiffusion, {"n_steps": 3, "n_samples_fit": 12}),
    Case(baselines.ESPRO, {"n_vertices": 2, "n_epochs": 1, "min_steps": 15}),
    Case(baselines.MeanFieldVI, {"n_steps": 40}),
    Case(
        baselines.MCDropout,
        {"insert": 0.2, "n_epochs": 1, "min_steps": 15},
        subsets=False,
        weights=False,
    ),
    Case(FiberLaplace, {"sampler": TrajectorySampler(n_particles=4, n_steps=4), "autoencoder": FAST}),
    Case(baselines.DeepEnsemble, {"batch": "loader", "min_steps": 30, "n_epochs": 1}, subsets=False),
    Case(baselines.SWAG, {"batch": "loader", "n_collected": 5, "n_skipped": 1}),
    Case(
        baselines.MultiSWAG,
        {"batch": "loader", "n_members": 2, "min_steps": 30, "n_epochs": 1, "n_collected": 5, "n_skipped": 1},
        subsets=False,
    ),
    Case(baselines.RiemannianLaplace, {"n_samples_fit": 6}),
    Case(baselines.LinearisedRiemannianLaplace, {"n_samples_fit": 6}),
    Case(baselines.FisherRiemannianLaplace, {"n_samples_fit": 6}),
    Case(baselines.HMC, {"n_warmup": 8, "n_chains": 2, "n_kept": 12, "max_leapfrog": 5}),
    Case(baselines.SGLD, {"n_steps": 40, "n_chains": 2, "n_kept": 12}),
    Case(baselines.SGHMC, {"n_steps": 40, "n_chains": 2, "n_kept": 12}),
    Case(baselines.CyclicalSGHMC, {"n_steps": 40, "n_chains": 2, "n_kept": 12}),
]
every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.method.__name__)
pytestmark = pytest.mark.filterwarnings("ignore:.*not at a minimum")


def fitted(case, likelihood="classification", **options):
    model, data = classifier() if likelihood == "classification" else regressor()
    la = case.build(model, likelihood, **options)
    la.fit(data)
    return la, data


def inputs(data):
    return data.dataset.tensors[0][:5]


def test_every_method_is_tested():
    assert {case.method for case in CASES} == {FiberLaplace, *baselines.METHODS}


@every_case
def test_the_factory_constructs_it(case):
    model, _ = classifier()
    subset, structure = case.method._key
    la = Laplace(model, "classification", subset_of_weights=subset, hessian_structure=structure, **case.options)
    assert type(la) is case.method


@every_case
def test_classification(case):
    la, data = fitted(case)
    x = inputs(data)
    for pred_type in case.predictions:
        probabilities = la(x, pred_type=pred_type, n_samples=7)
        assert probabilities.shape == (5, 3)
        torch.testing.assert_close(probabilities.sum(-1), torch.ones(5, dtype=torch.float64))
        samples = la.predictive_samples(x, pred_type=pred_type, n_samples=7)
        assert samples.shape == la.functional_samples(x, pred_type=pred_type, n_samples=7).shape == (7, 5, 3)
        torch.testing.assert_close(samples.mean(0), probabilities)
        assert torch.equal(la(x, pred_type=pred_type, n_samples=7), probabilities)
    assert la.diagnostics["gradient_evaluations"] >= 0
    assert la.n_outputs == 3
    assert la.n_data == 40


@every_case
def test_regression(case):
    la, data = fitted(case, "regression", sigma_noise=0.2)
    x = inputs(data)
    for pred_type in case.predictions:
        mean, variance = la(x, pred_type=pred_type, n_samples=7)
        assert mean.shape == (5, 2)
        assert variance.shape == ((5, 2) if pred_type == "nn" else (5, 2, 2))
        assert bool((variance.diagonal(dim1=-2, dim2=-1) >= 0).all())
    assert bool((la(x, pred_type=case.predictions[0], n_samples=7)[1] > 0).any())


@every_case
def test_samples(case):
    la, data = fitted(case)
    x = inputs(data)
    if not case.weights:
        with pytest.raises(NotImplementedError, match="functional_samples"):
            la.sample(3)
        return
    thetas = la.sample(6)
    assert thetas.shape == (6, la.n_params)
    assert torch.equal(thetas, la.sample(6))
    first, second = (la.sample(6, torch.Generator().manual_seed(s)) for s in (5, 6))
    assert torch.equal(first, la.sample(6, torch.Generator().manual_seed(5)))
    assert not torch.equal(first, second)
    if "nn" in case.predictions:
        expected = torch.stack([torch.func.functional_call(la.model, la.network.named(t), (x,)) for t in thetas])
        torch.testing.assert_close(la.functional_samples(x, pred_type="nn", n_samples=6), expected)


@every_case
def test_generators_of_predictions(case):
    la, data = fitted(case)
    x, kind = inputs(data), case.predictions[0]

    def predict(seed):
        return la.functional_samples(x, pred_type=kind, n_samples=4, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(predict(1), predict(1))
    assert not torch.equal(predict(1), predict(2))


@every_case
def test_seeds_repeat_a_fit_whatever_the_global_random_state(case, monkeypatch):
    """Bit by bit, where groups are of one size: timings choose it, and other sizes round in other ways."""

    def equal_seconds(run, rows):
        run(rows)
        return 1.0

    monkeypatch.setattr("laplace_fiber.engines._seconds_per_row", equal_seconds)
    predictions = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        la, data = fitted(case)
        predictions.append(la(inputs(data), pred_type=case.predictions[0], n_samples=5))
    assert torch.equal(*predictions)


@every_case
def test_the_model_is_returned_as_it_was(case):
    model, data = classifier()
    model.train()
    model[0].bias.requires_grad_(False) if case.subsets else None
    before, flags = copy.deepcopy(model.state_dict()), [p.requires_grad for p in model.parameters()]
    state = torch.get_rng_state()
    la = case.build(model, "classification")
    la.fit(data)
    la(inputs(data), pred_type=case.predictions[0], n_samples=3)
    assert torch.equal(state, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(p.grad is None or not p.grad.any() for p in model.parameters())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


@every_case
def test_states_go_through_a_file(case):
    la, data = fitted(case)
    x, file = inputs(data), io.BytesIO()
    torch.save(la.state_dict(), file)
    file.seek(0)
    other = case.build(copy.deepcopy(la.model), "classification")
    with pytest.raises(RuntimeError, match="fit"):
        other(x)
    other.load_state_dict(torch.load(file, weights_only=True))
    for pred_type in case.predictions:
        torch.testing.assert_close(
            other(x, pred_type=pred_type, n_samples=6), la(x, pred_type=pred_type, n_samples=6), rtol=0, atol=0
        )
    assert other.diagnostics == la.diagnostics
    with torch.no_grad():
        next(other.model.parameters()).add_(1)
    with pytest.raises(ValueError, match="trained weights"):
        case.build(other.model, "classification").load_state_dict(la.state_dict())


@every_case
def test_copies_predict_the_same(case):
    la, data = fitted(case)
    x, kind = inputs(data), case.predictions[0]
    assert torch.equal(copy.deepcopy(la)(x, pred_type=kind, n_samples=5), la(x, pred_type=kind, n_samples=5))


@every_case
@pytest.mark.parametrize("subset", ["last_layer", ["0"], torch.tensor([0, 3, 9, 20])], ids=str)
def test_subsets(case, subset):
    model, data = classifier()
    if not case.subsets:
        with pytest.raises((ValueError, TypeError), match="subset"):
            case.build(model, "classification", subset=subset).fit(data)
        return
    la = case.build(model, "classification", subset=subset)
    la.fit(data)
    assert la(inputs(data), pred_type=case.predictions[0], n_samples=4).shape == (5, 3)
    assert la.sample(4).shape == (4, la.n_params)
    assert la.n_params == len(la.network.positions()) < sum(p.numel() for p in model.parameters())


class OnDicts(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, batch):
        return self.body(batch["x"])


@every_case
def test_dict_batches_give_what_tensors_give(case):
    model, data = classifier()
    x, y = data.dataset.tensors
    batches = [UserDict(x=a, labels=b) for a, b in zip(x.split(16), y.split(16), strict=True)]
    plain, wrapped = case.build(model, "classification"), case.build(OnDicts(model), "classification")
    plain.fit(data)
    wrapped.fit(batches)
    kind = case.predictions[0]
    expected = plain(x[:5], pred_type=kind, n_samples=4)
    torch.testing.assert_close(wrapped(UserDict(x=x[:5]), pred_type=kind, n_samples=4), expected, rtol=1e-4, atol=1e-6)


@every_case
def test_progress_is_shown_when_asked_for(case, capsys):
    model, data = classifier()
    la = case.build(model, "classification")
    la.fit(data)
    assert not capsys.readouterr().err
    la.fit(data, progress_bar=True)
    assert "%" in capsys.readouterr().err


@every_case
def test_the_prior_precision_is_chosen_on_validation_data(case):
    la, data = fitted(case)
    kind = case.predictions[0]
    options = {
        "pred_type": kind,
        "val_loader": data,
        "log_prior_prec_min": 0.5,
        "log_prior_prec_max": 2,
        "grid_size": 2,
    }
    if kind == "glm":
        options["link_approx"] = "mc"
    la.optimize_prior_precision(method="gridsearch", n_samples=5, **options)
    assert any(torch.isclose(la.prior_precision, la.prior_precision.new_tensor(v)) for v in (1.0, 10**0.5, 100.0))
    assert la(inputs(data), pred_type=kind, n_samples=3).isfinite().all()
    with pytest.raises(ValueError, match="val_loader"):
        la.optimize_prior_precision(method="gridsearch")


@every_case
def test_a_failed_fit_says_why_and_leaves_nothing_half_done(case):
    model, data = classifier()
    la = case.build(model, "classification")
    x, y = data.dataset.tensors
    with pytest.raises(ValueError, match="finite"):
        la.fit(loader(x * torch.nan, y))
    with pytest.raises(RuntimeError, match="fit"):
        la(x)
    with pytest.raises(ValueError, match="override"):
        la.fit(data, override=False)
    with pytest.raises(ValueError, match="labels"):
        la.fit(loader(x, y + 7))
    la.fit(data)
    with pytest.raises(ValueError, match="pred_type"):
        la(x, pred_type="gp")
    with pytest.raises(ValueError, match="n_samples"):
        la(x, pred_type=case.predictions[0], n_samples=0)


@every_case
def test_its_spread_is_taken_apart_or_it_has_no_weight_samples(case):
    la, data = fitted(case)
    if not case.weights:
        with pytest.raises(NotImplementedError):
            spread_report(la, data, n_samples=5)
        return
    report = spread_report(la, data, n_samples=5)
    network, linearised = report.rows
    assert network.posterior == case.method.__name__
    assert 0 <= network.kernel_share <= 1
    assert network.change >= 0
    assert linearised.kernel_change <= 1e-6 * (1 + linearised.change)
