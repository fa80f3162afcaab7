"""The subspace of a walk, the latent lines in it, and the four posteriors over them."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch

from laplace_fiber import LatentAutoencoder, UniformPosition
from laplace_fiber.fiber_fit import FiberFit
from laplace_fiber.latent import LatentLines, straightness
from laplace_fiber.line_decoder import MOST_LINE_UNITS
from laplace_fiber.paths import StraightLines, WalkCurves
from laplace_fiber.subspace import BasisStorage, StreamingBasis, Subspace


def random_states(n: int, t: int, p: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    origin = torch.randn(p, generator=generator, dtype=torch.float64)
    steps = torch.randn(n, t, p, generator=generator, dtype=torch.float64)
    # Lengths over six orders of magnitude: the small ones must survive.
    steps *= torch.logspace(0, -6, p, dtype=torch.float64)
    return origin + torch.cat([torch.zeros(n, 1, p, dtype=torch.float64), steps.cumsum(1)], 1)


def streamed(states: torch.Tensor, **options):
    """The subspace and coordinates of states shown step by step, as a walk does."""
    n, t, _ = states.shape
    basis = StreamingBasis(states[0, 0], n * (t - 1), **options)
    steps = [basis.append(states[:, i] - states[0, 0]) for i in range(1, t)]
    padded = [torch.nn.functional.pad(c, (0, basis.rank - c.shape[1])) for c in steps]
    return basis.finished(), torch.stack([torch.zeros_like(padded[0]), *padded], 1)


@pytest.mark.parametrize("p", [7, 200], ids=["fewer weights than states", "more weights than states"])
def test_basis_is_orthonormal_and_exact(p):
    """V Vᵀ = 1 to 1e-12, and states come back from their coordinates to 1e-10 of the longest displacement."""
    states = random_states(4, 5, p)
    subspace, coordinates = streamed(states, relative_cutoff=1e-12)
    r = len(subspace.basis)
    assert r == min(p, 20)
    torch.testing.assert_close(subspace.basis @ subspace.basis.T, torch.eye(r, dtype=torch.float64), rtol=0, atol=1e-12)
    flat = coordinates.flatten(0, 1)
    torch.testing.assert_close(subspace.to_weights(flat), states.flatten(0, 1), rtol=0, atol=1e-10)
    torch.testing.assert_close(subspace.to_coordinates(states.flatten(0, 1)), flat, rtol=0, atol=1e-10)
    torch.testing.assert_close(coordinates.norm(dim=-1), (states - states[0, 0]).norm(dim=-1))


@pytest.mark.parametrize("scale", [1.0, 1e-20, 1e20])
def test_basis_in_float32_keeps_the_states(scale):
    """Small directions too: to 1e-5 of the states' size, orthonormal to 1e-5."""
    states = random_states(8, 6, 300)
    states = ((states - states[:, :1]) * scale).float()
    subspace, coordinates = streamed(states)
    back = subspace.to_weights(coordinates.flatten(0, 1))
    torch.testing.assert_close(back / scale, states.flatten(0, 1) / scale, rtol=0, atol=1e-5)
    gram = subspace.basis @ subspace.basis.T
    torch.testing.assert_close(gram, torch.eye(len(gram)), rtol=0, atol=1e-5)


def test_basis_of_repeated_states_has_their_rank():
    """A particle that is lost repeats its state: no direction is added for it, and none for rounding."""
    states = random_states(3, 4, 100).float()
    states[:, 3:] = states[:, 2:3]
    subspace, coordinates = streamed(states)
    assert len(subspace.basis) == 6
    torch.testing.assert_close(subspace.to_weights(coordinates[:, -1]), states[:, -1], rtol=0, atol=1e-5)
    motionless = states[:, :1].expand(3, 5, 100)
    assert streamed(motionless)[1].shape == (3, 5, 0)


def test_a_rounded_basis_misses_states_by_the_rounding_of_their_last_step():
    """Half precision: 2e-4 of a step's length, however long the walk."""
    states = random_states(6, 12, 5000).float()
    subspace, coordinates = streamed(states, storage=BasisStorage(torch.float16))
    assert subspace.basis.dtype == torch.float16
    missed = (subspace.to_weights(coordinates.flatten(0, 1)) - states.flatten(0, 1)).norm(dim=-1)
    steps = (states[:, 1:] - states[:, :-1]).norm(dim=-1)
    assert float(missed.max()) < 5e-4 * float(steps.max())
    whole = streamed(states)[1]
    torch.testing.assert_close(coordinates.norm(dim=-1), whole.norm(dim=-1), rtol=1e-3, atol=1e-3)


def test_basis_on_disk_equals_the_one_in_memory(tmp_path):
    states = random_states(4, 5, 200).float()
    in_memory, on_disk = (streamed(states, storage=s) for s in (None, BasisStorage(directory=tmp_path)))
    assert torch.equal(in_memory[0].basis, on_disk[0].basis)
    assert torch.equal(in_memory[1], on_disk[1])
    assert list(tmp_path.iterdir()) == []  # nothing is left to clean up


def test_room_that_was_not_needed_is_not_saved():
    """Rows are allotted for every state; pickles and copies hold those in use."""
    states = random_states(3, 4, 100).float()
    states[:, 2:] = states[:, 1:2]
    subspace = streamed(states)[0]
    assert len(subspace.basis) == 3
    assert subspace.basis.untyped_storage().nbytes() == 4 * subspace.basis.nbytes
    for again in (copy.deepcopy(subspace), pickle.loads(pickle.dumps(subspace))):
        assert torch.equal(again.basis, subspace.basis)
        assert again.basis.untyped_storage().nbytes() == subspace.basis.nbytes


def test_a_basis_that_does_not_fit_is_refused_at_once():
    with pytest.raises(MemoryError, match=r"GiB for a basis of 999999 states of 1000000 weights.*take fewer particles"):
        StreamingBasis(torch.zeros(1_000_000), 999_999)


def test_decoding_a_small_problem_reaches_machine_precision():
    """Coordinates of 3 dimensions in a latent space of 6: the lines pass through the states to 1e-8."""
    generator = torch.Generator().manual_seed(1)
    directions = torch.randn(3, 1, 3, generator=generator, dtype=torch.float64)
    coordinates = directions * torch.linspace(0, 1, 6, dtype=torch.float64)[:, None]
    autoencoder = LatentAutoencoder(latent_size=6, width=64, n_steps=100, line_units=400, ridge=1e-14)
    lines = autoencoder.fit(coordinates)
    i = torch.arange(3).repeat_interleave(6)
    decoded = lines.coordinates(i, torch.linspace(0, 1, 6, dtype=torch.float64).repeat(3))
    torch.testing.assert_close(decoded, coordinates.flatten(0, 1), rtol=0, atol=1e-8)


def curved_walk(n: int = 8, t: int = 15) -> torch.Tensor:
    """Circular arcs in random planes, starting at zero."""
    generator = torch.Generator().manual_seed(2)
    planes = torch.linalg.qr(torch.randn(n, 12, 2, generator=generator, dtype=torch.float64))[0]
    angle = torch.linspace(0, 1.5, t + 1, dtype=torch.float64)
    return torch.stack([angle.sin(), 1 - angle.cos()], -1)[None] @ planes.mT


def test_further_ends_of_a_trajectory_are_decoded_without_its_path():
    """Four ends of each: the lines of 240 trajectories of 16 states would need more than twice the units there are."""
    walk, generator = curved_walk(60), torch.Generator().manual_seed(3)
    ends = walk[:, -1] + 0.1 * torch.randn(3, 60, 12, generator=generator, dtype=torch.float64)
    paths = torch.cat([walk, *(torch.cat([walk[:, :-1], e[:, None]], 1) for e in ends)])
    decoded = {}
    for n_own in (None, 60):
        lines = LatentAutoencoder(n_steps=100).fit(paths, n_own=n_own)
        decoded[n_own] = [lines.coordinates(torch.arange(240), torch.full((240,), s).double()) for s in (1.0, 9 / 15)]
    size = paths.square().sum(-1).mean().sqrt()

    def error(n_own, which, state, n):
        return float((decoded[n_own][which][:n] - paths[:n, state]).norm(dim=-1).square().mean().sqrt() / size)

    assert error(60, 0, -1, 240) < 0.01
    assert error(60, 1, 9, 60) < 0.02
    assert error(None, 0, -1, 240) < 0.01  # equally spaced states of all lines
    assert error(None, 1, 9, 60) > 0.02


def test_more_states_than_units_are_followed_at_some_of_them():
    """All ends among them; as many units as given follow all states less closely."""
    walk = curved_walk(150)
    assert walk[..., 0].numel() > MOST_LINE_UNITS
    errors = {}
    for units in (None, MOST_LINE_UNITS):
        lines = LatentAutoencoder(n_steps=100, line_units=units).fit(walk)
        decoded = lines.coordinates(torch.arange(150), torch.ones(150, dtype=torch.float64))
        errors[units] = float((decoded - walk[:, -1]).norm() / walk[:, -1].norm())
    assert errors[None] < 0.01
    assert errors[None] < 0.5 * errors[MOST_LINE_UNITS]


def test_decoded_lines_follow_curved_states():
    """Within 1 % of the walk's size at the states; the straight line misses them by far more."""
    states = curved_walk()
    lines = LatentAutoencoder().fit(states)
    n, t, _ = states.shape
    i = torch.arange(n).repeat_interleave(t)
    s = torch.linspace(0, 1, t, dtype=torch.float64).repeat(n)
    size = states.square().sum(-1).mean().sqrt()

    def error(decoded):
        return float((decoded - states.flatten(0, 1)).square().sum(-1).mean().sqrt() / size)

    assert error(lines.coordinates(i, s)) < 0.01
    assert error(StraightLines(states).coordinates(i, s)) > 0.1
    assert error(WalkCurves(states).coordinates(i, s)) < 1e-12
    assert lines.straightness > 0.95
    assert error(LatentAutoencoder(closed_form=False).fit(states).coordinates(i, s)) > 0.01


def test_training_repeats_and_leaves_the_global_generator_alone():
    states, before = curved_walk(), torch.get_rng_state()
    first, second = (LatentAutoencoder(n_steps=5, seed=3).fit(states) for _ in range(2))
    other = LatentAutoencoder(n_steps=5, seed=4).fit(states)
    for a, b, c in zip(first.tensors(), second.tensors(), other.tensors(), strict=True):
        assert torch.equal(a, b)
        assert c.ndim == 0 or not torch.equal(a, c)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("closed_form", [True, False])
def test_lines_survive_saving(closed_form):
    lines = LatentAutoencoder(n_steps=3, closed_form=closed_form, line_units=50).fit(curved_walk())
    again = LatentLines.from_tensors(lines.tensors(), lines.straightness)
    i, s = torch.arange(8), torch.linspace(0, 1, 8, dtype=torch.float64)
    assert torch.equal(lines.coordinates(i, s), again.coordinates(i, s))


def test_straightness_of_known_curves():
    angle = torch.linspace(0, torch.pi, 2001, dtype=torch.float64)
    half_circle = torch.stack([angle.cos(), angle.sin()], -1)[None]
    assert straightness(half_circle) == pytest.approx(2 / torch.pi, rel=1e-5)
    assert straightness(torch.zeros(2, 3, 4)) == 1.0


@pytest.mark.parametrize("setting", ["latent_size", "width", "n_steps", "batch_size", "learning_rate", "ridge"])
def test_bad_settings(setting):
    with pytest.raises(ValueError, match=f"{setting}: expected a positive number, got 0"):
        LatentAutoencoder(**{setting: 0})
    with pytest.raises(ValueError, match="lambda_minus: expected a number >= 0"):
        LatentAutoencoder(lambda_minus=-1.0)
    with pytest.raises(ValueError, match="line_units: expected at least 1 or None"):
        LatentAutoencoder(line_units=0)
    with pytest.raises(ValueError, match="leading: expected at least 1 or None"):
        LatentAutoencoder(leading=0)


def test_training_stops_by_itself_and_on_leading_coordinates_only():
    """Coordinates beyond the leading ones reach the decoder through the closed form, and cost no training."""
    states = curved_walk()
    wide = torch.cat([states, 1e-3 * states.flip(0)], -1)
    stopped, longest = (LatentAutoencoder(leading=k, n_steps=5000).fit(wide) for k in (4, None))
    n, t, _ = wide.shape
    i, s = torch.arange(n).repeat_interleave(t), torch.linspace(0, 1, t, dtype=torch.float64).repeat(n)
    for lines in (stopped, longest):
        missed = lines.coordinates(i, s) - wide.flatten(0, 1)
        assert float(missed[:, 12:].norm() / wide[..., 12:].norm()) < 0.02
    tracked = LatentAutoencoder(n_steps=5000)
    steps = 0

    class Counting(torch.optim.Adam):
        def step(self, *args, **kwargs):
            nonlocal steps
            steps += 1
            return super().step(*args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "Adam", Counting)
        tracked.fit(states)
    assert 50 <= steps < 1000


def fit_of(states: torch.Tensor, **autoencoder: int) -> FiberFit:
    r = states.shape[-1]
    subspace = Subspace(torch.zeros(r, dtype=torch.float64), torch.eye(r, dtype=torch.float64))
    lines = LatentAutoencoder(n_steps=50, **autoencoder).fit(states)
    return FiberFit(subspace, states, lines, torch.ones(r, dtype=torch.float64), torch.tensor(1.0), 1.0)


def drawn(fit: FiberFit, form: str, law, upto: float, n_samples: int, generator: torch.Generator) -> torch.Tensor:
    """Samples as points of the walk's subspace, without the decoder's last layer and the basis as one."""
    fit = replace(fit)
    fit.__dict__["decoded_space"] = None
    found = fit.draw(form, law, upto, n_samples, generator)
    assert found.space is fit.subspace
    return found.coordinates[found.of_sample]


def test_walk_curves_interpolate_between_states():
    states = curved_walk()
    curves, i = WalkCurves(states), torch.tensor([2, 2, 2, 2])
    s = torch.tensor([0.0, 1.0, 3 / 15, 3.25 / 15], dtype=torch.float64)
    expected = torch.stack([states[2, 0], states[2, 15], states[2, 3], torch.lerp(states[2, 3], states[2, 4], 0.25)])
    torch.testing.assert_close(curves.coordinates(i, s), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("form", ["latent", "states", "line"])
def test_positions_near_zero_give_the_map(form):
    fit = fit_of(curved_walk())
    samples = drawn(fit, form, UniformPosition(), 1e-9, 50, torch.Generator().manual_seed(0))
    assert float(samples.norm(dim=-1).max()) < 0.01 * float(fit.states.norm(dim=-1).max())


def test_gaussian_has_the_mean_and_covariance_of_the_walk():
    """100,000 draws: standard error of a covariance entry below 0.5 % of the largest."""
    fit = fit_of(curved_walk())
    draws = drawn(fit, "gaussian", UniformPosition(), 1.0, 100_000, torch.Generator().manual_seed(0))
    t = fit.states.shape[1]
    u = (torch.arange(t, dtype=torch.float64) + 0.5) / t
    points = WalkCurves(fit.states).coordinates(torch.arange(8).repeat_interleave(t), u.repeat(8))
    largest = float(points.T.cov().diagonal().max())
    torch.testing.assert_close(draws.T.cov(), points.T.cov(), rtol=0, atol=0.02 * largest)
    torch.testing.assert_close(draws.mean(0), points.mean(0), rtol=0, atol=0.02 * largest**0.5)


def test_trajectories_are_drawn_uniformly_and_positions_from_the_law():
    class Shell:
        def quantile(self, u):
            return torch.ones_like(u)

    fit = fit_of(curved_walk())
    draws = drawn(fit, "states", Shell(), 1.0, 8000, torch.Generator().manual_seed(0))
    which = (draws[:, None] - fit.states[None, :, -1]).norm(dim=-1).argmin(1)
    torch.testing.assert_close(draws, fit.states[which, -1], rtol=0, atol=1e-12)
    counts = torch.bincount(which, minlength=8)
    assert float(((counts - 1000.0) ** 2 / 1000).sum()) < 24.3  # 99.9 % quantile of chi-squared with 7 degrees


@pytest.mark.parametrize("form", ["latent", "states"])
def test_identity_and_joined_decoding_change_rounding_only(form):
    """The last layer joined with an identity, with a basis worth joining, and with one that is not."""
    states = curved_walk()
    r, generator = states.shape[-1], torch.Generator().manual_seed(0)
    many, few = fit_of(states), fit_of(states, line_units=r // 2)
    wide = torch.linalg.qr(torch.randn(40 * r, r, generator=generator, dtype=torch.float64))[0].T
    for fit, basis, joined in ((many, torch.eye(r).double(), True), (few, wide, True), (many, wide, False)):
        origin = torch.randn(basis.shape[1], generator=generator, dtype=torch.float64)
        one = replace(fit, subspace=Subspace(origin, basis))
        assert (one.decoded_space is not None) == joined
        draw = [form, UniformPosition(), 0.7, 20]
        decodable = one.draw(*draw, torch.Generator().manual_seed(1))
        space, coordinates = decodable.space, decodable.coordinates
        expected = origin + drawn(one, *draw, torch.Generator().manual_seed(1)) @ basis
        torch.testing.assert_close(space.to_weights(coordinates), expected, rtol=0, atol=1e-10)
        torch.testing.assert_close(torch.cat(list(space.weight_groups(coordinates, 3))), expected, rtol=0, atol=1e-10)


def test_an_identity_is_told_from_other_bases():
    eye, origin = torch.eye(5), torch.zeros(5)
    assert Subspace(origin, eye).is_identity
    assert not Subspace(origin, eye.flip(0)).is_identity
    assert not Subspace(origin, eye + 0.1).is_identity
    assert not Subspace(origin, eye[:4]).is_identity


def test_a_pickled_fit_leaves_the_joined_matrix_behind():
    fit = fit_of(curved_walk())
    size = len(pickle.dumps(fit))
    assert fit.decoded_space is not None
    assert len(pickle.dumps(fit)) == size
