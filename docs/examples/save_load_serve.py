"""Save a fitted posterior, load it elsewhere, and serve its predictions over HTTP.

Two files are enough: the network's state and the posterior's. Both load with ``weights_only=True``, so that a file from
elsewhere cannot run code. The server draws the same samples at each request: equal inputs get equal answers.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.request import Request, urlopen

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from laplace_fiber import FiberLaplace, TrajectorySampler


def network() -> nn.Module:
    """The architecture, which both sides know."""
    return nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2))


def fit_and_save(folder: Path, short: bool) -> Tensor:
    """Train, fit and write both files; returns what the posterior says at three inputs."""
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2
    x = torch.randn(200, 2, generator=generator) + 1.5 * y[:, None]
    torch.manual_seed(0)
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01, weight_decay=5e-3)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    sampler = TrajectorySampler(n_particles=8, n_steps=10) if short else None
    la = FiberLaplace(model, "classification", sampler=sampler)
    la.fit(DataLoader(TensorDataset(x, y), batch_size=50))
    torch.save(model.state_dict(), folder / "network.pt")
    torch.save(la.state_dict(), folder / "posterior.pt")
    return la(INPUTS)


def load(folder: Path) -> FiberLaplace:
    """The posterior, without the data that it was fitted to."""
    model = network()
    model.load_state_dict(torch.load(folder / "network.pt", weights_only=True))
    la = FiberLaplace(model, "classification")
    la.load_state_dict(torch.load(folder / "posterior.pt", weights_only=True))
    return la


def server_of(la: FiberLaplace) -> ThreadingHTTPServer:
    """Answers POST requests with inputs (a list of pairs, as JSON) by their class probabilities."""
    one_at_a_time = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            inputs = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with one_at_a_time:
                answer = json.dumps(la(torch.tensor(inputs)).tolist()).encode()
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answer)

        def log_message(self, *arguments: object) -> None:
            """No line for each request."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


INPUTS = torch.tensor([[0.0, 0.0], [1.5, 1.5], [8.0, -8.0]])


def main(short: bool = False) -> dict[str, Tensor]:
    """Save, load, serve on a free port, and ask."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        fitted = fit_and_save(folder, short)
        print({file.name: f"{file.stat().st_size / 1024:.0f} KiB" for file in sorted(folder.iterdir())})
        la = load(folder)
    server = server_of(la)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    with urlopen(Request(url, json.dumps(INPUTS.tolist()).encode())) as response:
        served = torch.tensor(json.load(response))
    server.shutdown()
    server.server_close()
    for name, probabilities in (("when fitted", fitted), ("as served", served)):
        print(f"probability of class 1, {name:11}: {[round(p, 4) for p in probabilities[:, 1].tolist()]}")
    return {"fitted": fitted, "served": served}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--short", action="store_true", help="a shorter walk")
    main(**vars(parser.parse_args()))
