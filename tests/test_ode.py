import pytest
import torch

from laplace_fiber.baselines import ode
from laplace_fiber.baselines.ode import Tolerance, integrate

TIGHT = Tolerance(rtol=1e-9, atol=1e-9)


def linear(rates):
    return lambda y, rows: rates[rows, None] * y


def test_exponentials_of_different_rates():
    rates = torch.tensor([-1.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    found = integrate(linear(rates), torch.ones(4, 1, dtype=torch.float64), TIGHT)
    torch.testing.assert_close(found.states[:, 0], rates.exp(), rtol=1e-7, atol=0)
    assert bool(found.finished.all())
    assert torch.equal(found.times, torch.ones(4, dtype=torch.float64))


def test_oscillators():
    speeds = torch.tensor([1.0, 7.0, 20.0], dtype=torch.float64)

    def field(y, rows):
        return torch.stack([y[:, 1], -speeds[rows].square() * y[:, 0]], 1)

    start = torch.stack([torch.zeros_like(speeds), speeds], 1)
    found = integrate(field, start, TIGHT)
    torch.testing.assert_close(found.states, torch.stack([speeds.sin(), speeds * speeds.cos()], 1), rtol=0, atol=1e-6)
    assert found.evaluations[0] < found.evaluations[1] < found.evaluations[2]


def test_one_step_has_an_error_of_sixth_order():
    def error(h):
        y, step = torch.ones(1, 1, dtype=torch.float64), torch.tensor([h], dtype=torch.float64)
        rows = torch.tensor([0])
        field = linear(torch.ones(1, dtype=torch.float64))
        new, _, _ = ode._trial(field, y, field(y, rows), step, rows, TIGHT)
        return abs(float(new) - float(step.exp()))

    assert error(0.1) / error(0.05) == pytest.approx(2**6, rel=0.1)


def test_one_row_alone_goes_the_steps_of_scipy():
    from scipy.integrate import solve_ivp

    def field(y, rows):
        return torch.stack([y[:, 1], 5 * (1 - y[:, 0] ** 2) * y[:, 1] - y[:, 0]], 1)

    start = torch.tensor([[2.0, 0.0]], dtype=torch.float64)
    for tolerance in (1e-3, 1e-5):
        ours = integrate(field, start, Tolerance(rtol=tolerance, atol=tolerance), 8.0)
        theirs = solve_ivp(
            lambda _, y: field(torch.tensor(y)[None], None)[0].numpy(),
            (0, 8),
            start[0].numpy(),
            rtol=tolerance,
            atol=tolerance,
        )
        torch.testing.assert_close(ours.states[0], torch.tensor(theirs.y[:, -1]), rtol=0, atol=1e-7)
        assert int(ours.evaluations) == theirs.nfev


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_stiff_row_neither_spoils_nor_slows_the_others(dtype):
    seen = torch.zeros(3, dtype=torch.int64)
    rates = torch.tensor([-1.0, -2e4, 1.0], dtype=dtype)

    def field(y, rows):
        seen[rows] += 1
        return rates[rows, None] * y

    alone = integrate(linear(rates[::2]), torch.ones(2, 1, dtype=dtype), Tolerance())
    found = integrate(field, torch.ones(3, 1, dtype=dtype), Tolerance(max_evaluations=300))
    assert [ode.STATUSES[s] for s in found.status] == ["finished", "too many evaluations", "finished"]
    torch.testing.assert_close(found.states[::2], alone.states)
    assert torch.equal(found.evaluations[::2], alone.evaluations)
    assert torch.equal(seen, found.evaluations)
    assert 290 < int(seen[1]) <= 300
    assert float(found.times[1]) < 1


def test_poles_and_values_that_are_not_finite():
    speeds = torch.tensor([0.5, 2.0], dtype=torch.float64)
    found = integrate(lambda y, rows: speeds[rows, None] * y**2, torch.ones(2, 1, dtype=torch.float64), Tolerance())
    assert found.status.tolist() == [ode.FINISHED, ode.STEP_UNDERFLOW]
    assert float(found.states[0]) == pytest.approx(2, rel=1e-3)
    assert float(found.times[1]) == pytest.approx(0.5, rel=1e-3)

    def beyond(y, rows):
        return torch.where(y < 1.5, torch.ones_like(y), torch.nan)

    starts = torch.tensor([[0.0], [1.0], [2.0], [torch.inf]], dtype=torch.float64)
    found = integrate(beyond, starts, Tolerance())
    assert found.status.tolist() == [ode.FINISHED, *[ode.NOT_FINITE] * 3]
    assert float(found.states[0]) == pytest.approx(1)
    assert 1 < float(found.states[1]) <= 1.5


def test_lengths_of_time_and_reports():
    seen = []
    found = integrate(
        linear(torch.ones(2, dtype=torch.float64)),
        torch.ones(2, 1, dtype=torch.float64),
        TIGHT,
        2.5,
        lambda solution: seen.append(int(solution.finished.sum())),
    )
    torch.testing.assert_close(found.states, torch.full((2, 1), 2.5, dtype=torch.float64).exp(), rtol=1e-7, atol=0)
    assert seen[0] == 0
    assert seen[-1] == 2
