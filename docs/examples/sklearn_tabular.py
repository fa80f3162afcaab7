"""A scikit-learn user's tabular classifier, made calibrated in ten lines.

Data, scaling and split are scikit-learn's, the classifier is a torch network that was trained for too long. The lines
between the two marks are all that the posterior takes.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score, log_loss
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, TrajectorySampler, plots


def tumours() -> list[Tensor]:
    """Inputs and classes for training, for choosing the prior precision, and for testing: 171, 57 and 341 of them."""
    x, y = load_breast_cancer(return_X_y=True)
    x_fit, x_test, y_fit, y_test = train_test_split(x, y, test_size=0.6, random_state=0, stratify=y)
    x_train, x_val, y_train, y_val = train_test_split(x_fit, y_fit, test_size=0.25, random_state=0, stratify=y_fit)
    scaler = StandardScaler().fit(x_train)
    pairs = ((x_train, y_train), (x_val, y_val), (x_test, y_test))
    return [part for x, y in pairs for part in (torch.tensor(scaler.transform(x)), torch.tensor(y))]


def train(x: Tensor, y: Tensor, n_epochs: int) -> nn.Module:
    """A network without regularisation: it ends sure of everything."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(x.shape[1], 32), nn.ReLU(), nn.Linear(32, 2)).double()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(n_epochs):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return model


def main(short: bool = False, figure: Path | None = None) -> dict[str, float]:
    """Log loss and accuracy before and after."""
    x, y, x_val, y_val, x_test, y_test = tumours()
    model = train(x, y, 300)
    sampler = TrajectorySampler(n_particles=8, n_steps=10) if short else TrajectorySampler()

    # --- ten lines -------------------------------------------------------------------------------------------------
    train_loader = DataLoader(TensorDataset(x, y), batch_size=64)
    val_loader = DataLoader(TensorDataset(x_val, y_val), batch_size=64)
    la = FiberLaplace(model, "classification", sampler=sampler)
    la.fit(train_loader)
    la.optimize_prior_precision(method="gridsearch", val_loader=val_loader)
    probabilities = la(x_test)
    # ---------------------------------------------------------------------------------------------------------------

    with torch.no_grad():
        before = model(x_test).softmax(-1)
    results = {"nll of the network": log_loss(y_test, before), "nll of the posterior": log_loss(y_test, probabilities)}
    for name, p in (("network", before), ("posterior", probabilities)):
        loss, accuracy = results[f"nll of the {name}"], accuracy_score(y_test, p.argmax(1))
        surest = float((p.max(1).values > 0.99).float().mean())
        print(f"{name:10} log loss {loss:.3f}   accuracy {accuracy:.3f}   share above 99 % sure {surest:.2f}")
    print(f"prior precision chosen on validation data: {float(la.prior_precision):.2f}")

    if figure is not None:
        plots.reliability({"map": before, "fiber": probabilities}, y_test).figure.savefig(figure)
    return results


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a shorter walk")
    parser.add_argument("--figure", type=Path, help="where to draw the reliability diagram")
    main(**vars(parser.parse_args()))
