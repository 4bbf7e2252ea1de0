"""Heads on frozen features of several layers, trained by Adam with early stopping on validation examples.

A head reads the sum of standardised layers with learned softmax weights (the convention of SUPERB, arXiv 2105.01051,
section 2). All that is random follows from a seed.

Letters: L layers, N examples or frames, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeAlias, TypeVar, final

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter, ReLU, Sequential
from torch.optim import Adam
from typing_extensions import override

Score: TypeAlias = tuple[float, ...]
"""Larger is better; later numbers decide between equals."""

HeadT = TypeVar("HeadT", bound=Module)


@final
@dataclass(frozen=True, kw_only=True)
class HeadTraining:
    """How heads are trained."""

    learning_rates: Sequence[float] = (1e-2, 3e-3)
    """A head is trained with each; validation chooses."""

    max_epochs: int = 60

    patience: int = 15
    """Epochs without a better validation score before training ends."""

    batch_size: int = 16
    """Examples in a step."""


@final
class LayerSum(Module):
    """The sum over layers of w_l (x_l - mean_l) / scale_l, with learned positive w_l whose sum is 1.

    :param mean: (L, 1, D).
    :param scale: (L, 1, D), positive.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.mixture = Parameter(torch.zeros(mean.size(0)))

    @property
    def layer_weights(self) -> Tensor:
        """(L,), positive, sum 1."""
        return self.mixture.detach().softmax(dim=0)

    @override
    def forward(self, features: Tensor) -> Tensor:
        """(L, N, D), of any precision -> (N, D) float32."""
        x = (features.float() - self.mean) / self.scale
        return x.squeeze(0) if x.size(0) == 1 else torch.einsum("l,lnd->nd", self.mixture.softmax(dim=0), x)


@final
class LayerHead(Module):
    """A head on a sum of layers."""

    def __init__(self, layer_sum: LayerSum, head: Module) -> None:
        super().__init__()
        self.layer_sum = layer_sum
        self.head = head

    @override
    def forward(self, features: Tensor) -> Tensor:
        """(L, N, D) -> what the head makes of (N, D)."""
        output: Tensor = self.head(self.layer_sum(features))
        return output


def fit_layer_sum(features: Tensor) -> LayerSum:
    """Return a sum of layers that standardises by the moments of these examples, (L, N, D)."""
    # Layer by layer: float32 of all frames of all layers may be too much.
    moments = [torch.std_mean(layer.float(), dim=0, correction=0, keepdim=True) for layer in features]
    scale, mean = (torch.stack(part) for part in zip(*moments, strict=True))  # L x (1, D) -> (L, 1, D)
    is_varied = scale > 1e-6 * mean.abs() + torch.finfo(scale.dtype).tiny
    return LayerSum(mean, torch.where(is_varied, scale, 1.0))


def create_perceptron(input_dim: int, hidden_dim: int, output_dim: int) -> Sequential:
    """Return linear, ReLU, linear."""
    return Sequential(Linear(input_dim, hidden_dim), ReLU(), Linear(hidden_dim, output_dim))


def train_head(
    create: Callable[[], HeadT],
    compute_loss: Callable[[HeadT, Tensor], Tensor],
    compute_score: Callable[[HeadT], Score],
    examples: Tensor,
    training: HeadTraining,
    *,
    seed: int,
    check_stop: Callable[[], None] = lambda: None,
) -> HeadT:
    """Return the head that is best on validation, over all epochs and learning rates; the first of equals.

    :param create: Makes a head with fresh weights, from torch's generator.
    :param compute_loss: From a head and the indices of some examples to their mean loss.
    :param compute_score: From a head, in evaluation mode and without gradients, to its score on validation examples.
    :param examples: Indices to train on, int64.
    :param check_stop: Called after each epoch; may raise.
    """
    best: tuple[Score, HeadT] | None = None
    # Recipes that do not train run in inference mode, whose tensors take no part in autograd.
    with torch.inference_mode(mode=False), torch.enable_grad(), torch.random.fork_rng(devices=[]):
        for learning_rate in training.learning_rates:
            torch.manual_seed(seed)
            head = create()
            scored = _train(
                head,
                Adam(head.parameters(), learning_rate),
                compute_loss,
                compute_score,
                examples,
                training,
                check_stop,
            )
            if best is None or scored[0] > best[0]:
                best = scored
    assert best is not None  # HeadTraining names at least one rate
    return best[1]


def _train(
    head: HeadT,
    optimizer: Adam,
    compute_loss: Callable[[HeadT, Tensor], Tensor],
    compute_score: Callable[[HeadT], Score],
    examples: Tensor,
    training: HeadTraining,
    check_stop: Callable[[], None],
) -> tuple[Score, HeadT]:
    best, best_epoch = (_score(head, compute_score), deepcopy(head)), 0
    for epoch in range(1, training.max_epochs + 1):
        head.train()
        for batch in examples[torch.randperm(examples.numel())].split(training.batch_size):
            optimizer.zero_grad()
            compute_loss(head, batch).backward()
            optimizer.step()
        if (score := _score(head, compute_score)) > best[0]:
            best, best_epoch = (score, deepcopy(head)), epoch
        check_stop()
        if epoch - best_epoch >= training.patience:
            break
    return best[0], best[1].eval()


@torch.no_grad()
def _score(head: HeadT, compute_score: Callable[[HeadT], Score]) -> Score:
    head.eval()
    return compute_score(head)
