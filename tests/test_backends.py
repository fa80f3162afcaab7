"""The table of layers and curvature backends in docs/compatibility.md, cell by cell."""

import re
import warnings
from pathlib import Path

import laplace.curvature
import pytest
import torch
from problems import fitted, loader
from torch import nn

TABLE = (Path(__file__).parent.parent / "docs" / "compatibility.md").read_text()


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0][:, 0]


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cells = nn.GRU(4, 3, batch_first=True)

    def forward(self, x):
        return self.cells(x)[0][:, -1]


def problem(layer: str):
    generator = torch.Generator().manual_seed(0)
    flat, images = torch.randn(12, 4, generator=generator), torch.randn(12, 1, 4, 4, generator=generator)
    sequences, tokens = torch.randn(12, 3, 4, generator=generator), torch.arange(36).view(12, 3) % 5
    with torch.random.fork_rng():
        torch.manual_seed(0)
        networks = {
            "Linear": (flat, [nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)]),
            "Conv2d": (images, [nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8, 2)]),
            "BatchNorm1d": (flat, [nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 2)]),
            "LayerNorm": (flat, [nn.Linear(4, 5), nn.LayerNorm(5), nn.ReLU(), nn.Linear(5, 2)]),
            "Embedding": (tokens, [nn.Embedding(5, 3), nn.Flatten(), nn.Linear(9, 2)]),
            "EmbeddingBag": (tokens, [nn.EmbeddingBag(5, 3), nn.Linear(3, 2)]),
            "MultiheadAttention": (sequences, [Attention(), nn.Linear(4, 2)]),
            "GRU": (sequences, [Recurrent(), nn.Linear(3, 2)]),
        }
    x, layers = networks[layer]
    return nn.Sequential(*layers), x


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    "layer", ["Linear", "Conv2d", "BatchNorm1d", "LayerNorm", "Embedding", "EmbeddingBag", "MultiheadAttention", "GRU"]
)
def test_each_row_of_the_table(layer):
    rows = [re.split(r"\s*\|\s*", line.strip("| ")) for line in TABLE.splitlines() if line.startswith("| ")]
    (header,) = (row for row in rows if row[:2] == ["layer", "none"])
    (row,) = (row for row in rows if row[0] == layer)
    model, x = problem(layer)
    data = loader(x, torch.arange(12) % 2)

    def predict(backend):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return fitted(model, data, backend=backend)(x, "glm", link_approx="probit")

    plain = predict(None)
    assert row[1] == "yes"
    for name, works in zip(header[2:], row[2:], strict=True):
        backend = getattr(laplace.curvature, name)
        if works == "yes":
            torch.testing.assert_close(predict(backend), plain, rtol=0, atol=1e-3)
        else:
            with pytest.raises(Exception):  # noqa: B017, PT011  (each backend has errors of its own)
                predict(backend)
