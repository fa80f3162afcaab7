"""Whatever the arguments: shapes as documented, no NaN in silence, probabilities, variances, or a documented error."""

import copy
import math
import warnings
from dataclasses import dataclass

import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from laplace import FullLaplace
from problems import loader
from torch import nn

from laplace_fiber import FiberLaplace, FixedRefinement, LatentAutoencoder, RefineToLevel, TrajectorySampler
from laplace_fiber.paths import FORMS
from laplace_fiber.posterior import LINKS

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")  # also turns the project's own errors off

PROPERTY = settings(
    deadline=None,
    max_examples=25,
    derandomize=True,
    database=None,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    suppress_health_check=list(HealthCheck),
)
SHORT = TrajectorySampler(n_particles=2, n_steps=2, refinement=FixedRefinement(2))
TINY = LatentAutoencoder(latent_size=2, width=4, n_steps=2, line_units=6)
TOLERANCE = {torch.bfloat16: 0.03, torch.float32: 1e-4, torch.float64: 1e-9}

logarithmic = st.floats(-3, 4).map(lambda power: 10.0**power)


class Scorer(nn.Module):
    """Scores of single inputs (b, 1), or of pairs (b, 2)."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(x).squeeze(-1) if x.ndim == 3 else self.body(x)


@dataclass(frozen=True)
class Problem:
    """A small network, not trained, with its data."""

    likelihood: str
    n: int
    n_in: int
    width: int
    n_out: int
    dtype: torch.dtype
    batch_size: int
    scale: float

    @property
    def sizes(self):
        return [self.n_in * self.width, self.width, self.width * self.n_out, self.n_out]

    def normal(self, *shape):
        return torch.randn(*shape, generator=torch.Generator().manual_seed(self.n), dtype=torch.float64).to(self.dtype)

    def model(self):
        body = nn.Sequential(nn.Linear(self.n_in, self.width), nn.Tanh(), nn.Linear(self.width, self.n_out))
        body = body.to(self.dtype)
        with torch.no_grad():
            for k, parameter in enumerate(body.parameters()):
                parameter.copy_(self.normal(k + 1, *parameter.shape)[-1])
        return Scorer(body) if self.likelihood == "reward_modeling" else body

    def x(self, pairs=False):
        return self.scale * (self.normal(self.n, 2, self.n_in) if pairs else self.normal(self.n, self.n_in))

    def data(self):
        if self.likelihood == "regression":
            return loader(self.x(), self.normal(self.n, self.n_out), self.batch_size)
        if self.likelihood == "reward_modeling":
            return loader(self.x(pairs=True), torch.arange(self.n) % 2, self.batch_size)
        return loader(self.x(), torch.arange(self.n) % self.n_out, self.batch_size)

    def module(self, k):
        return f"body.{k}" if self.likelihood == "reward_modeling" else str(k)


@st.composite
def problems(draw, likelihoods=("classification", "regression", "reward_modeling"), dtypes=tuple(TOLERANCE)):
    likelihood = draw(st.sampled_from(likelihoods))
    outputs = {"classification": st.integers(2, 4), "regression": st.integers(1, 3), "reward_modeling": st.just(1)}
    return Problem(
        likelihood=likelihood,
        n=draw(st.integers(1, 9)),
        n_in=draw(st.integers(1, 3)),
        width=draw(st.integers(1, 4)),
        n_out=draw(outputs[likelihood]),
        dtype=draw(st.sampled_from(dtypes)),
        batch_size=draw(st.integers(1, 10)),
        scale=draw(st.sampled_from([0.0, 1.0, 30.0])),
    )


@st.composite
def subsets(draw, problem):
    """A subset with its number of weights and of weight tensors (of weights, for indices)."""
    total, sizes = sum(problem.sizes), problem.sizes
    kind = draw(st.sampled_from(["all", "last_layer", "modules", "index", "mask"]))
    if kind == "all":
        return "all", total, 4
    if kind == "last_layer":
        return "last_layer", sizes[2] + sizes[3], 2
    if kind == "modules":
        chosen = draw(st.lists(st.sampled_from([0, 2]), min_size=1, unique=True))
        return [problem.module(k) for k in chosen], sum(sizes[k] + sizes[k + 1] for k in chosen), 2 * len(chosen)
    index = draw(st.lists(st.integers(0, total - 1), min_size=1, unique=True))
    if kind == "index":
        return torch.tensor(index), len(index), len(index)
    mask = torch.zeros(total, dtype=torch.bool)
    mask[index] = True
    return mask, len(index), len(index)


@st.composite
def precisions(draw, n_params, n_layers):
    size = draw(st.sampled_from([0, 1, n_layers, n_params]))
    if size == 0:
        value = draw(logarithmic)
        return draw(st.sampled_from([value, torch.tensor(value)]))
    return torch.tensor(draw(st.lists(logarithmic, min_size=size, max_size=size)))


@st.composite
def settled(draw, **kinds):
    """A problem, arguments of the constructor for it, and the numbers of weights and of weight tensors to expect."""
    problem = draw(problems(**kinds))
    subset, n_params, n_layers = draw(subsets(problem))
    options = {
        "sigma_noise": draw(st.sampled_from([1e-2, 0.3, 1.0, 10.0])) if problem.likelihood == "regression" else 1.0,
        "prior_precision": draw(precisions(n_params, n_layers)),
        "temperature": draw(st.sampled_from([1.0, 0.1, 10.0])),
        "subset": subset,
        "posterior": draw(st.sampled_from(FORMS)),
        "chunk_size": draw(st.sampled_from([None, 1, 3])),
    }
    return problem, options, n_params, n_layers


def posterior(data, **kinds):
    """A drawn problem and its fitted posterior."""
    problem, options, n_params, n_layers = data.draw(settled(**kinds))
    la = FiberLaplace(problem.model(), problem.likelihood, sampler=SHORT, autoencoder=TINY, **options)
    assert (la.n_params, la.n_layers) == (n_params, n_layers)
    la.fit(problem.data())
    return problem, la


ARGUMENTS = st.fixed_dictionaries(
    {
        "pred_type": st.sampled_from(["nn", "glm"]),
        "link_approx": st.sampled_from(LINKS),
        "joint": st.booleans(),
        "n_samples": st.integers(1, 4),
        "diagonal_output": st.booleans(),
        "fitting": st.booleans(),
    }
)


def documented(call):
    """What the call returns, or its error, which must be of a documented kind and say something."""
    try:
        return call()
    except TypeCheckError:  # a TypeError, but of the annotations
        raise
    except (ValueError, TypeError, RuntimeError, NotImplementedError) as error:
        if str(error).strip():
            return error
        raise


def expected_shapes(problem, b, arguments, classes):
    c = problem.n_out
    if classes:
        return [(b, 2 if problem.likelihood == "reward_modeling" else c)]
    if arguments["pred_type"] == "nn":
        return [(b, c), (b, c)]
    if arguments["joint"]:
        return [(b * c,), (b * c, b * c)]
    return [(b, c), (b, c) if arguments["diagonal_output"] else (b, c, c)]


def check_prediction(prediction, shapes, dtype):
    tensors = prediction if isinstance(prediction, tuple) else (prediction,)
    assert [tuple(t.shape) for t in tensors] == shapes
    assert all(t.dtype == dtype and bool(torch.isfinite(t).all()) and not t.requires_grad for t in tensors)
    if len(tensors) == 1:
        check_probabilities(prediction)
    else:
        mean, variance = tensors
        if variance.ndim > mean.ndim:
            torch.testing.assert_close(variance, variance.mT, rtol=TOLERANCE[dtype], atol=1e-6)
            variance = variance.diagonal(dim1=-2, dim2=-1)
        assert bool((variance >= 0).all())


def check_probabilities(probabilities):
    total = probabilities.sum(-1)
    tolerance = TOLERANCE[probabilities.dtype]
    assert bool((probabilities >= 0).all())
    torch.testing.assert_close(total, torch.ones_like(total), rtol=0, atol=tolerance)


# --- valid arguments never fail --------------------------------------------------------------------------------------


@PROPERTY
@given(st.data())
def test_predictions(data):
    """Every combination of arguments is served, but for the links that average over samples cannot take."""
    problem, la = posterior(data)
    assert all(math.isfinite(value) for value in (la.loss, la.report.nll_map, *la.report.nll_decoded))
    for arguments in data.draw(st.lists(ARGUMENTS, min_size=4, max_size=4)):
        reward = problem.likelihood == "reward_modeling"
        classes = problem.likelihood == "classification" or (reward and arguments["fitting"])
        x = problem.x(pairs=reward and arguments["fitting"])
        if arguments["pred_type"] == "nn" and arguments["link_approx"] != "mc":
            with pytest.raises(ValueError, match="link_approx: expected mc for pred_type='nn'"):
                la(x, **arguments)
        else:
            check_prediction(la(x, **arguments), expected_shapes(problem, len(x), arguments, classes), problem.dtype)


@PROPERTY
@given(st.data())
def test_samples(data):
    """Shapes, dtypes and randomness of weights, functions and predictions."""
    problem, la = posterior(data)
    n_samples, pred_type = data.draw(st.integers(1, 5)), data.draw(st.sampled_from(["nn", "glm"]))
    seed, x = data.draw(st.integers(0, 2**63 - 1)), problem.x()

    def generator():
        return torch.Generator().manual_seed(seed)

    thetas = la.sample(n_samples, generator())
    functions = la.functional_samples(x, pred_type, n_samples, generator=generator())
    predictions = la.predictive_samples(x, pred_type, n_samples, generator=generator())
    assert thetas.shape == (n_samples, la.n_params)
    assert functions.shape == predictions.shape == (n_samples, problem.n, problem.n_out)
    for tensor in (thetas, functions, predictions):
        assert tensor.dtype == problem.dtype
        assert bool(torch.isfinite(tensor).all())
    assert torch.equal(thetas, la.sample(n_samples, generator()))
    assert torch.equal(functions, la.functional_samples(x, pred_type, n_samples, generator=generator()))
    assert torch.equal(la.sample(n_samples), la.sample(n_samples))
    if problem.likelihood == "classification":
        check_probabilities(predictions)
    else:
        assert torch.equal(predictions, functions)


@PROPERTY
@given(st.data())
def test_prior_precision_after_fit(data):
    """Any structure may be set; the walk is used up to a share of at most one, and the evidence is differentiable."""
    problem, la = posterior(data)
    value = data.draw(precisions(la.n_params, la.n_layers))
    la.prior_precision = value
    assert 0 < la.walk_share <= 1
    assert la.prior_precision_diag.shape == (la.n_params,)
    assert bool(torch.isfinite(la.sample(5)).all())
    tau = torch.as_tensor(value).to(problem.dtype).reshape(-1).requires_grad_()
    evidence = la.log_marginal_likelihood(tau)
    (gradient,) = torch.autograd.grad(evidence, tau)
    assert evidence.shape == ()
    assert evidence.dtype == problem.dtype
    assert bool(torch.isfinite(evidence))
    assert bool(torch.isfinite(gradient).all())
    assert not la.sample(2).requires_grad


@PROPERTY
@given(st.data())
def test_evidence_is_at_most_the_log_joint(data):
    """Since log det(I + G/τ) ≥ 0."""
    _, la = posterior(data, dtypes=(torch.float64,))
    offset = la.mean - la.prior_mean
    joint = la.log_likelihood - 0.5 * (offset.square() * la.prior_precision_diag).sum()
    assert float(la.log_marginal_likelihood()) <= float(joint) + 1e-8 * abs(float(joint))


@PROPERTY
@given(st.data())
def test_states_and_copies(data):
    """A state through ``load_state_dict``, a copy, another chunk size and parts of the inputs change nothing."""
    problem, la = posterior(data)
    x, arguments = problem.x(), {"n_samples": 3}
    first = la(x, **arguments)
    loaded = FiberLaplace(la.model, problem.likelihood, subset=subset_of(la), chunk_size=la.chunk_size)
    loaded.load_state_dict(la.state_dict())
    for other in (loaded, copy.deepcopy(la)):
        for ours, theirs in zip(as_tuple(first), as_tuple(other(x, **arguments)), strict=True):
            assert torch.equal(ours, theirs)
    tolerance = {"rtol": 10 * TOLERANCE[problem.dtype], "atol": 10 * TOLERANCE[problem.dtype]}
    scale = max(float(t.abs().max()) for t in as_tuple(first))
    la.chunk_size = data.draw(st.integers(1, 5))
    cut = data.draw(st.integers(0, problem.n))
    halves = [as_tuple(la(part, **arguments)) for part in (x[:cut], x[cut:])]
    for whole, *parts in zip(as_tuple(first), *halves, strict=True):
        torch.testing.assert_close(torch.cat(parts) / max(scale, 1.0), whole / max(scale, 1.0), **tolerance)


def as_tuple(prediction):
    return prediction if isinstance(prediction, tuple) else (prediction,)


def subset_of(la):
    """The moving weights as indices into all trainable ones."""
    if la.network.index is not None:
        return la.network.positions()
    modules = sorted({name.rsplit(".", 1)[0] for name in la.network.names})
    return modules if len(modules) < 2 else "all"


@PROPERTY
@given(st.data())
def test_linearised_moments_agree_with_one_another(data):
    """Joint covariance: positive, marginals on its diagonal, J C Jᵀ of laplace-torch's Jacobians."""
    kinds = {"likelihoods": ("classification", "regression"), "dtypes": (torch.float64,)}
    problem, la = posterior(data, **kinds)
    x = problem.x()
    host = FullLaplace(copy.deepcopy(la.model), problem.likelihood)
    jacobians, outputs = host.backend.jacobians(x)
    jacobians = jacobians[..., la.network.positions()]
    joint, marginal = la.functional_covariance(jacobians), la.functional_variance(jacobians)
    b, c = outputs.shape
    unit = max(1.0, float(joint.abs().max()))
    assert float(torch.linalg.eigvalsh(joint).min()) >= -1e-9 * unit
    blocks = joint.view(b, c, b, c)
    torch.testing.assert_close(torch.stack([blocks[k, :, k] for k in range(b)]), marginal)
    if problem.likelihood == "regression":
        mean, variance = la(x, "glm")
        torch.testing.assert_close(mean, outputs)
        torch.testing.assert_close(variance / unit, marginal / unit)
        torch.testing.assert_close(la(x, "glm", joint=True)[1] / unit, joint / unit)


@pytest.mark.parametrize("link", LINKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_links_at_extremes(link, dtype):
    """Outputs that do not vary, and logits whose exponentials overflow."""
    model = nn.Linear(3, 3).to(dtype)
    with torch.no_grad():
        model.weight.copy_(torch.diag(torch.tensor([800.0, 1.0, -800.0])))
        model.bias.copy_(torch.tensor([1.0, 0.0, -1.0]))
    la = FiberLaplace(model, "classification", subset=torch.tensor([0, 4, 8]), sampler=SHORT, autoencoder=TINY)
    la.fit(loader(torch.eye(3, dtype=dtype), torch.tensor([0, 1, 0])))
    constant = la(torch.zeros(1, 3, dtype=dtype), "glm", link_approx=link)
    check_probabilities(constant)
    assert bool((constant[0].diff() < 0).all())
    if not link.startswith("bridge"):
        torch.testing.assert_close(constant, model.bias.detach().softmax(-1)[None])
    large = la(torch.eye(3, dtype=dtype), "glm", link_approx=link)
    check_probabilities(large)
    assert int(large[0].argmax()) == 0


# --- any settings: valid ones work, others are refused ---------------------------------------------------------------

numbers = st.one_of(st.none(), st.sampled_from([0.0, -1.0, math.nan, math.inf, 1e-3, 0.5, 10.0]))


@PROPERTY
@given(
    st.fixed_dictionaries(
        {
            "n_particles": st.integers(-1, 4),
            "n_steps": st.integers(-1, 4),
            "reach": numbers,
            "step_size": numbers,
            "descent": st.sampled_from(["plain", "monotone", "spectral", "quasi-newton", "steepest"]),
            "batch": st.sampled_from(["auto", "full", "loader", "half"]),
            "chunk_size": st.one_of(st.none(), st.integers(-1, 3)),
            "seed": st.integers(-(2**63), 2**63 - 1),
            "refinement": st.sampled_from([RefineToLevel(), FixedRefinement(0), FixedRefinement(3)]),
        }
    ),
    st.fixed_dictionaries(
        {
            "latent_size": st.integers(-1, 4),
            "width": st.integers(-1, 5),
            "n_steps": st.integers(-1, 4),
            "batch_size": st.integers(-1, 4),
            "learning_rate": st.sampled_from([0.0, -1.0, math.nan, 1e-3, 1.0]),
            "lambda_plus": st.sampled_from([0.0, -1.0, math.nan, 1.0]),
            "lambda_minus": st.sampled_from([0.0, -1.0, math.nan, 0.3]),
            "closed_form": st.booleans(),
            "line_units": st.one_of(st.none(), st.integers(-1, 5)),
            "ridge": st.sampled_from([0.0, -1.0, math.nan, 1e-7, 1.0]),
        }
    ),
    problems(dtypes=(torch.float64,)),
    st.booleans(),
)
def test_settings(walk, autoencoder, problem, repair):
    """``repair`` puts valid values where others were drawn, so that half of the examples get to a fit."""
    if repair:
        walk, autoencoder = repaired(walk), repaired(autoencoder)
    sampler = documented(lambda: TrajectorySampler(**walk))
    lines = documented(lambda: LatentAutoencoder(**autoencoder))
    if not isinstance(sampler, TrajectorySampler) or not isinstance(lines, LatentAutoencoder):
        assert not repair, (sampler, lines)
        return
    la = FiberLaplace(problem.model(), problem.likelihood, sampler=sampler, autoencoder=lines)
    error = documented(lambda: la.fit(problem.data()))
    if error is not None:  # a plain descent with any step may diverge, and says so
        assert walk["descent"] == "plain", error
        return
    for form in FORMS:
        la.posterior = form
        assert bool(torch.isfinite(la.sample(4)).all())


def repaired(values):
    choices = {"descent": ("plain", "monotone", "spectral", "quasi-newton"), "batch": ("auto", "full", "loader")}
    free = ("refinement", "closed_form", "seed")
    positive = ("n_particles", "n_steps", "latent_size", "width", "batch_size", "learning_rate", "ridge")
    valid = {}
    for name, value in values.items():
        if name in choices:
            valid[name] = value if value in choices[name] else choices[name][0]
        elif name in free or value is None:
            valid[name] = value
        elif name.startswith("lambda"):
            valid[name] = value if value >= 0 else 0.5
        else:
            fine = value > 0 and math.isfinite(value)
            valid[name] = value if fine else (1 if name in positive else None)
    return valid


odd_numbers = st.sampled_from([0.0, -1.0, math.nan, math.inf, -math.inf, 1e-30, 1e30, 2.0])
odd_tensors = st.one_of(
    odd_numbers.map(torch.tensor),
    st.tuples(st.integers(0, 12), odd_numbers).map(lambda pair: torch.full((pair[0],), pair[1])),
    st.just(torch.ones(2, 2)),
)
ODD = {
    "prior_precision": st.one_of(odd_numbers, odd_tensors),
    "prior_mean": st.one_of(odd_numbers, odd_tensors),
    "sigma_noise": st.one_of(odd_numbers, odd_tensors),
    "temperature": odd_numbers,
    "posterior": st.sampled_from([*FORMS, "", "cubic"]),
    "engine": st.sampled_from(["auto", "vmap", "loop", "", "jit"]),
    "chunk_size": st.one_of(st.none(), st.integers(-1, 3)),
    "subset": st.one_of(
        st.sampled_from(["", "first", [], ["0", "9"], ["1"], [""], ["0", "0"]]),
        odd_tensors,
        st.lists(st.integers(-2, 40), max_size=3).map(lambda v: torch.tensor(v, dtype=torch.long)),
        st.lists(st.booleans(), max_size=12).map(lambda v: torch.tensor(v, dtype=torch.bool)),
    ),
}
odd_arguments = st.lists(st.sampled_from(sorted(ODD)), min_size=1, max_size=2, unique=True).flatmap(
    lambda names: st.fixed_dictionaries({name: ODD[name] for name in names})
)


@PROPERTY
@given(odd_arguments, problems(likelihoods=("classification", "regression"), dtypes=(torch.float32, torch.float64)))
def test_odd_arguments_of_the_constructor(arguments, problem):
    """Either a documented error, from the constructor or the fit, or finite predictions."""

    def predict():
        la = FiberLaplace(problem.model(), problem.likelihood, **{"sampler": SHORT, "autoencoder": TINY, **arguments})
        la.fit(problem.data())
        return [la.sample(3), *as_tuple(la(problem.x(), n_samples=3)), *as_tuple(la(problem.x(), "glm", n_samples=3))]

    tensors = documented(predict)
    assert isinstance(tensors, Exception) or all(bool(torch.isfinite(t).all()) for t in tensors), arguments


@PROPERTY
@given(st.data())
def test_odd_arguments_of_predictions(data):
    """Any words, numbers of samples and inputs: a documented error or a prediction without NaN."""
    problem, la = posterior(data, likelihoods=("classification", "regression"), dtypes=(torch.float32,))
    words = st.sampled_from(["nn", "glm", "mc", "probit", "bridge", "bridge_norm", "map", "", "MC"])
    width = data.draw(st.sampled_from([problem.n_in, problem.n_in + 1]))
    x = problem.normal(data.draw(st.integers(0, 3)), width)
    arguments = data.draw(
        st.fixed_dictionaries(
            {"pred_type": words, "link_approx": words, "n_samples": st.integers(-2, 3)},
            optional={"joint": st.booleans(), "diagonal_output": st.booleans(), "fitting": st.booleans()},
        )
    )
    prediction = documented(lambda: la(x, **arguments))
    if not isinstance(prediction, Exception):
        assert arguments["pred_type"] in ("nn", "glm")
        assert arguments["link_approx"] in LINKS
        assert width == problem.n_in
        assert all(bool(torch.isfinite(t).all()) for t in as_tuple(prediction))
    assert all(module.training for module in la.model.modules())


@PROPERTY
@given(
    problems(likelihoods=("classification", "regression"), dtypes=(torch.float64,)),
    st.sampled_from(["x", "y"]),
    st.sampled_from([math.nan, math.inf, -math.inf, 1e30, 1e200, -1.0, 7.0]),
    st.sampled_from(["entry", "shape", "float", "int", "empty", "column"]),
    st.sampled_from(["auto", "loader"]),
)
def test_odd_data(problem, which, value, change, batch):
    """Refused, or fitted with finite samples; never half done."""
    tensors = dict(zip("xy", problem.data().dataset.tensors, strict=True))
    chosen = tensors[which].clone()
    if change == "entry":
        if not chosen.is_floating_point():
            chosen = chosen if not math.isfinite(value) or abs(value) > 10 else chosen + int(value)
        else:
            chosen.view(-1)[-1] = value
    else:
        changes = {
            "shape": lambda t: t[:, None] if t.ndim == 1 else t[..., None],
            "float": lambda t: t.double() * 1.0,
            "int": lambda t: t.long(),
            "empty": lambda t: t,
            "column": lambda t: torch.stack([t, t], -1).flatten(-2),
        }
        chosen = changes[change](chosen)
    tensors[which] = chosen
    rows = 0 if change == "empty" else min(len(t) for t in tensors.values())
    data = loader(tensors["x"][:rows], tensors["y"][:rows], problem.batch_size)
    sampler = TrajectorySampler(n_particles=2, n_steps=2, refinement=FixedRefinement(2), batch=batch)
    la = FiberLaplace(problem.model(), problem.likelihood, sampler=sampler, autoencoder=TINY)
    error = documented(lambda: la.fit(data))
    if error is None:
        assert bool(torch.isfinite(la.sample(4)).all())
    else:
        assert la.mean is None
        assert la.report is None
        with pytest.raises(RuntimeError, match="has not been fitted"):
            la(problem.x())


@PROPERTY
@given(st.data())
def test_choosing_the_prior_precision(data):
    """Both methods leave a positive, finite precision of the asked structure, and predictions without NaN."""
    problem, la = posterior(data, likelihoods=("classification", "regression"), dtypes=(torch.float64,))
    method = data.draw(st.sampled_from(["gridsearch", "marglik"]))
    structure = data.draw(st.sampled_from(["scalar", "layerwise", "diag"]))
    before = la.prior_precision.numel()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        la.optimize_prior_precision(
            method=method, prior_structure=structure, n_steps=3, val_loader=problem.data(), grid_size=4, n_samples=3
        )
    sizes = {"scalar": 1, "layerwise": la.n_layers, "diag": la.n_params}
    assert la.prior_precision.numel() in ((before, 1) if method == "gridsearch" else (sizes[structure],))
    assert bool((torch.isfinite(la.prior_precision) & (la.prior_precision > 0)).all())
    assert bool(torch.isfinite(la.sample(4)).all())
