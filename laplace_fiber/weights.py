"""The network as a function f(θ, x) of the weights that a posterior moves.

Weights enter through :func:`torch.func.functional_call`; the user's model is only ever read.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Literal, TypeAlias

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from laplace_fiber.modes import as_written, evaluation, without_recomputation
from laplace_fiber.plain_layers import PlainLayers, has_plain_form

Inputs: TypeAlias = Tensor | MutableMapping[str, Any]
"""What a network takes: a tensor, or the dict-like batch of a Hugging Face model."""

Subset: TypeAlias = Literal["all", "last_layer"] | Sequence[str] | Tensor
"""Which weights move: all, the last layer's, those of named modules, or indices (or a mask) of all trainable ones."""

Engine: TypeAlias = Literal["auto", "vmap", "loop"]
"""How several weight vectors are evaluated: batched, one after another, or whichever suits the network."""


class NetworkFunction:
    """f(θ, x) for a flat vector θ of the chosen weights; every other weight and all buffers stay as the model has them.

    Parameters
    ----------
    model
        The trained network. It is never written to; forward passes run in eval mode and the mode is restored. One that
        ``torch.compile`` has compiled is run as it was written: compiled code has no second derivatives, nor batches.
    subset
        The weights that move (see :data:`Subset`). Weights with ``requires_grad=False`` never do.
    engine
        ``"auto"`` batches with ``torch.func.vmap``, or loops, where that is clearly faster (as it is for most
        convolutional networks on a CPU). A network that vmap cannot handle falls back to the loop with one warning.

    Raises
    ------
    ValueError
        No trainable weight is left, a named module does not exist, or an index is out of range.
    """

    def __init__(self, model: nn.Module, subset: Subset = "all", engine: Engine = "auto") -> None:
        if engine not in ("auto", "vmap", "loop"):
            raise ValueError(f"engine: expected 'auto', 'vmap' or 'loop', got {engine!r}.")
        self.model = model = as_written(model)
        self.engine: Engine = engine
        self._plain_layers = has_plain_form(model)
        self.last_layer = _last_layer_name(model) if isinstance(subset, str) and subset == "last_layer" else None
        trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
        if not trainable:
            raise ValueError(
                "Expected a model with trainable weights, got none with requires_grad=True; "
                "set requires_grad=True on the weights that the posterior should cover."
            )
        self.index: Int[Tensor, " p"] | None = None
        if isinstance(subset, Tensor):
            trainable, self.index = _tensors_touched(trainable, subset)
        else:
            trainable = _tensors_in_modules(model, trainable, self.last_layer, subset)
        self.names = tuple(trainable)
        self.shapes = tuple(p.shape for p in trainable.values())
        self.sizes = tuple(p.numel() for p in trainable.values())
        self.n_params = sum(self.sizes) if self.index is None else int(self.index.numel())

    @property
    def tensors(self) -> list[nn.Parameter]:
        """The model's weight tensors that hold at least one moving weight, in the order of θ."""
        named = dict(self.model.named_parameters())
        return [named[name] for name in self.names]

    def positions(self) -> Int[Tensor, " p"]:
        """Where the moving weights stand in the vector of all trainable ones."""
        named = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        starts = dict(zip(named, itertools.accumulate((p.numel() for p in named.values()), initial=0), strict=False))
        flat = torch.cat([torch.arange(starts[n], starts[n] + named[n].numel()) for n in self.names])
        return flat if self.index is None else flat[self.index]

    def theta(self) -> Float[Tensor, " p"]:
        """A copy of the model's present weights as the flat vector θ."""
        flat = torch.cat([p.detach().reshape(-1) for p in self.tensors])
        return flat.clone() if self.index is None else flat[self.index.to(flat.device)]

    def named(self, theta: Float[Tensor, " p"]) -> dict[str, Tensor]:
        """θ as the named weight tensors that ``functional_call`` takes."""
        if self.index is not None:
            flat = torch.cat([p.detach().reshape(-1) for p in self.tensors])
            theta = flat.index_copy(0, self.index.to(flat.device), theta)
        parts = theta.split(self.sizes)
        return {n: part.view(shape) for n, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def one(self, theta: Float[Tensor, " p"], x: Inputs, **model_kwargs: Any) -> Float[Tensor, "b *c"]:
        """f(θ, x) for one θ. Call inside :meth:`evaluation`."""
        return self.run(self.named(theta), x, model_kwargs)

    def run(self, named: Mapping[str, Tensor], x: Inputs, model_kwargs: dict[str, Any]) -> Float[Tensor, "b *c"]:
        """The network with the given weights and buffers in place of its own. Call inside :meth:`evaluation`."""
        with without_recomputation(), PlainLayers() if self._plain_layers else nullcontext():
            output = functional_call(self.model, dict(named), (x,), model_kwargs)
        if not isinstance(output, Tensor):
            raise ValueError(
                f"model: expected one tensor of outputs, got a {type(output).__name__}; wrap the network in a module "
                "whose forward picks the outputs, such as model(x).logits."
            )
        return output

    def many(self, thetas: Float[Tensor, "n p"], x: Inputs, **model_kwargs: Any) -> Float[Tensor, "n b *c"]:
        """f(θ, x) for each row of ``thetas``. Call inside :meth:`evaluation`."""

        def loop() -> Tensor:
            return torch.stack([self.one(theta, x, **model_kwargs) for theta in thetas])

        if len(thetas) == 1:  # squeezed, the derivative is a view, too: no pass over all weights
            return self.one(thetas.squeeze(0), x, **model_kwargs)[None]
        if not self.batches:
            return loop()
        try:
            with _batched_throughout():
                batched: Tensor = vmap(lambda theta: self.one(theta, x, **model_kwargs))(thetas)
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, ValueError, NotImplementedError, UserWarning) as reason:
            looped = loop()  # an error of the network itself is raised here, as the network raises it
            warnings.warn(f"torch.func.vmap cannot batch this network ({_first_line(reason)}): looping.", stacklevel=2)
            self.engine = "loop"
            return looped
        return batched

    @property
    def is_part(self) -> bool:
        """Whether some of the model's weights do not move."""
        return self.n_params < sum(p.numel() for p in self.model.parameters())

    def fixed_state(self) -> str:
        """A digest of the tensors that θ does not replace: another one when any is replaced or written to."""
        moving = set(self.names) if self.index is None else set()
        named = itertools.chain(self.model.named_parameters(), self.model.named_buffers())
        return ",".join(f"{id(t)}:{t._version}" for name, t in named if name not in moving)

    @property
    def batches(self) -> bool:
        """Whether vmap may be used: not forbidden, and not found to fail."""
        return self.engine != "loop"

    def resolved_engine(self) -> Literal["vmap", "loop"]:
        """The engine that the network's structure suggests; walks and predictions time the other one, too."""
        if self.engine != "auto":
            return self.engine
        convolutional = any(isinstance(m, nn.modules.conv._ConvNd) for m in self.model.modules())
        return "loop" if convolutional and self.tensors[0].device.type == "cpu" else "vmap"

    def evaluation(self) -> AbstractContextManager[None]:
        """Eval mode (batch-norm statistics frozen, dropout off) while inside; each module's own mode afterwards.

        One thread at a time: others that evaluate the same model wait.
        """
        return evaluation(self.model)

    def check_last_layer(self, x: Inputs) -> None:
        """Make sure that the layer taken for the last one is called last.

        Raises
        ------
        ValueError
            Another layer with weights of its own runs later; its name is given, for ``subset=[name]``.
        """
        if self.last_layer is None:
            return
        called: list[str] = []
        hooks = [
            m.register_forward_hook(lambda *_, name=name: called.append(name))
            for name, m in self.model.named_modules()
            if any(True for _ in m.parameters(recurse=False))
        ]
        try:
            with torch.no_grad(), self.evaluation():
                self.model(x)
        finally:
            for hook in hooks:
                hook.remove()
        if called and called[-1] != self.last_layer:
            raise ValueError(
                f"subset='last_layer': expected {self.last_layer!r} (the last one registered) to run last, "
                f"got {called[-1]!r}; name the layer yourself with subset=[{called[-1]!r}]."
            )


def difference_step(theta: Float[Tensor, " p"]) -> Float[Tensor, ""]:
    """Length of a central difference's step: rounding (ε/h) against curvature (h²), in the weights' size."""
    return torch.finfo(theta.dtype).eps ** (1 / 3) * (1 + theta.detach().abs().max())


@contextmanager
def _batched_throughout() -> Iterator[None]:
    """Let vmap fail where it would loop inside: over fused attention (the plain form is taken), or with a warning."""
    with sdpa_kernel(SDPBackend.MATH), warnings.catch_warnings():
        warnings.filterwarnings("error", message="There is a performance drop", category=UserWarning)
        yield


def _last_layer_name(model: nn.Module) -> str:
    own = [name for name, m in model.named_modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    if not own:
        raise ValueError("subset='last_layer': expected a layer with trainable weights, got none; check requires_grad.")
    return own[-1]


def _tensors_in_modules(
    model: nn.Module, trainable: dict[str, nn.Parameter], last_layer: str | None, subset: str | Sequence[str]
) -> dict[str, nn.Parameter]:
    if last_layer is None and isinstance(subset, str):
        if subset != "all":
            raise ValueError(
                f"subset: expected 'all', 'last_layer', a list of module names or an index tensor, got {subset!r}."
            )
        return trainable
    wanted = [last_layer] if last_layer is not None else list(subset)
    known = {name for name, _ in model.named_modules()}
    unknown = [name for name in wanted if name not in known]
    if unknown:
        raise ValueError(f"subset: no module named {unknown} in the model; its modules are {sorted(known - {''})}.")
    # Compared by identity: a weight tied to another module is listed under one name only.
    inside = {id(p) for name in wanted for p in model.get_submodule(name).parameters()}
    chosen = {name: p for name, p in trainable.items() if id(p) in inside}
    if not chosen:
        raise ValueError(f"subset: expected trainable weights in {wanted}, got none; check requires_grad.")
    return chosen


def _tensors_touched(
    trainable: dict[str, nn.Parameter], index: Tensor
) -> tuple[dict[str, nn.Parameter], Int[Tensor, " p"]]:
    total = sum(p.numel() for p in trainable.values())
    if index.dtype == torch.bool and index.shape == (total,):
        index = index.nonzero().flatten()
    if index.ndim != 1 or index.is_floating_point() or index.dtype == torch.bool or index.numel() == 0:
        raise ValueError(
            f"subset: expected a non-empty vector of integer indices, or a mask of all {total} trainable weights, got "
            f"shape {tuple(index.shape)} of {index.dtype}."
        )
    index = index.to("cpu", torch.int64)
    if int(index.min()) < 0 or int(index.max()) >= total or index.unique().numel() != index.numel():
        raise ValueError(f"subset: expected distinct indices in [0, {total}), got others; see model.parameters().")
    chosen: dict[str, nn.Parameter] = {}
    shifted, start, kept = index.clone(), 0, 0
    for name, p in trainable.items():
        inside = (index >= start) & (index < start + p.numel())
        if inside.any():
            chosen[name] = p
            shifted[inside] = index[inside] - start + kept
            kept += p.numel()
        start += p.numel()
    return chosen, shifted


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
