"""Small problems whose walks, curvatures and posteriors are known in closed form. All in float64."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, FixedRefinement, LatentAutoencoder, TrajectorySampler
from laplace_fiber.data import TrainingData
from laplace_fiber.log_joint import LogJoint
from laplace_fiber.weights import NetworkFunction

FAST = LatentAutoencoder(latent_size=8, width=32, n_steps=20)
PLAIN = {"descent": "plain", "refinement": FixedRefinement(3)}


def loader(x: Tensor, y: Tensor, batch_size: int = 16) -> DataLoader:
    return DataLoader(TensorDataset(x, y), batch_size=batch_size)


def linear_regression(n: int = 30, d: int = 3, tau: float = 0.7, sigma: float = 0.5):
    """A linear model at the minimum of J, its loader, and the dense Hessian of J/n."""
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    y = torch.randn(n, 1, generator=generator, dtype=torch.float64)
    model = nn.Linear(d, 1, bias=False).double()
    hessian = (x.T @ x / sigma**2 + tau * torch.eye(d, dtype=torch.float64)) / n
    with torch.no_grad():
        model.weight.copy_(torch.linalg.solve(n * hessian, x.T @ y / sigma**2).T)
    return model, loader(x, y), hessian


def flat_problem(p: int = 6):
    """A model whose outputs, and so the data term, do not depend on its weights (inputs are zero)."""
    model = nn.Linear(p, 1, bias=False).double()
    return model, loader(torch.zeros(8, p, dtype=torch.float64), torch.zeros(8, 1, dtype=torch.float64))


def classifier(n: int = 40, n_classes: int = 3, width: int = 5):
    """A tanh network trained for a moment on three Gaussian clouds, and its loader."""
    generator = torch.Generator().manual_seed(1)
    y = torch.arange(n) % n_classes
    x = torch.randn(n, 2, generator=generator, dtype=torch.float64) + 2 * torch.stack([y == 0, y == 1], 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, n_classes)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05, weight_decay=1.0 / n)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    model.zero_grad()
    return model, loader(x, y)


def regressor(n: int = 24):
    """A tanh network with two outputs trained for a moment on sines, and its loader."""
    x = torch.linspace(-2, 2, n, dtype=torch.float64)[:, None]
    y = torch.cat([x.sin(), x.cos()], 1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(1, 6), nn.Tanh(), nn.Linear(6, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    for _ in range(300):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    model.zero_grad()
    return model, loader(x, y)


def joint_of(model: nn.Module, data: DataLoader, likelihood: str, tau: float = 1.0, sigma: float = 1.0, **options):
    """The log joint and training data of a problem."""
    training = TrainingData(data, next(model.parameters()).device)
    like = next(model.parameters())
    precision, mean = like.new_full((1,), tau), like.new_zeros(1)
    network = NetworkFunction(model, options.pop("subset", "all"), options.pop("engine", "auto"))
    return LogJoint(network, likelihood, training.n_data, precision, mean, sigma, **options), training


def fitted(model, data, likelihood: str = "classification", **options) -> FiberLaplace:
    """A small FiberLaplace, fitted."""
    options = {"sampler": TrajectorySampler(n_particles=6, n_steps=8), "autoencoder": FAST, **options}
    la = FiberLaplace(model, likelihood, **options)
    la.fit(data)
    return la
