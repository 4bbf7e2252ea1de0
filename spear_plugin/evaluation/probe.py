"""Linear probes: how well a linear classifier reads a label from frozen features.

A probe is a multinomial logistic regression on standardised features, fitted by full-batch L-BFGS. Everything that is
chosen (strength of the regularisation, layer, time shift of the frames) is chosen on validation examples; the chosen
setting is then fitted again on training and validation examples together and read once on the test examples.

Letters: L layers, A alternative features of the same examples, N examples, D feature width, V classes.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, final

import torch
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import LBFGS

DEFAULT_L2: Final = (1e-1, 1e-2, 1e-3, 1e-4)
"""Weights of the penalty: a hundred clips need the strong ones, narrow features with thousands of frames the weak."""


class ProbeError(ValueError):
    """Raised when examples do not allow a probe; the message is one line with the rule and the remedy."""


@final
@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe: logits = W (sum over layers of w_l (x_l - mean_l) / scale_l) + b."""

    mean: Tensor
    """(L, 1, D)."""

    scale: Tensor
    """(L, 1, D), positive."""

    mixture: Tensor
    """(L,), weights of the layers before the softmax; without effect when L is 1."""

    weight: Tensor
    """(V, D)."""

    bias: Tensor
    """(V,)."""

    @property
    def layer_weights(self) -> Tensor:
        """(L,), positive, sum 1."""
        return self.mixture.softmax(dim=0)

    def logits(self, features: Tensor) -> Tensor:
        """Return (N, V) for ``features`` (N, D), or (L, N, D) for a probe on several layers."""
        return _logits(_standardise(features, self.mean, self.scale), self.mixture, self.weight, self.bias)

    def predict(self, features: Tensor) -> Tensor:
        """Return the most probable class of each example, (N,) int64."""
        with torch.inference_mode():
            return self.logits(features).argmax(dim=-1)


@final
@dataclass(frozen=True)
class Split:
    """Which examples choose, and which ones test; all tensors hold indices, int64."""

    tuning: Sequence[tuple[Tensor, Tensor]]
    """Training and validation examples, once, or several times for a cross-validation. Each pair has all examples that
    the final probe is fitted on."""

    test: Tensor

    @property
    def fitted(self) -> Tensor:
        """Training and validation examples together."""
        return torch.cat(self.tuning[0]).sort().values


@final
@dataclass(frozen=True)
class Choice:
    """The alternative and the penalty that were best on the validation examples of a split, and what they give."""

    valid_accuracy: float

    alternative: int

    l2: float

    predictions: Tensor
    """Classes of the test examples, (N_test,) int64, by the probe fitted on training and validation examples."""

    layer_weights: Tensor
    """(L,) of that probe; ``[1.]`` for a probe on a single layer."""


def fit_probe(
    features: Tensor,
    labels: Tensor,
    *,
    num_classes: int,
    l2: float,
    max_iterations: int = 100,
    tolerance: float = 1e-4,
) -> LinearProbe:
    """Fit a probe by minimising mean cross-entropy + l2/2 ||W||² (the bias and the layer weights are not penalised).

    For one layer the problem is convex and equal to scikit-learn's ``LogisticRegression(C=1 / (l2 * N))`` on
    standardised features. For several layers the probe reads their softmax-weighted sum, whose weights are trained
    jointly (the convention of SUPERB, arXiv 2105.01051, section 2).

    :param features: (N, D) or (L, N, D). Half precision is computed in float32, double precision stays.
    :param labels: (N,) int64 in [0, num_classes).
    :param tolerance: The largest element of the gradient at which to stop.
    """
    # Recipes that do not train run in inference mode, whose tensors take no part in autograd.
    with torch.inference_mode(mode=False), torch.enable_grad():
        x = features.detach().clone() if features.is_inference() else features.detach()  # (N, D) or (L, N, D)

        mean, scale = _moments(x)

        x, y = _standardise(x, mean, scale), labels.clone()  # (L, N, D)

        mixture, weight, bias = _initial_parameters(x, num_classes)

        parameters = [mixture, weight, bias] if x.size(0) > 1 else [weight, bias]

        optimizer = LBFGS(
            parameters,
            max_iter=max_iterations,
            tolerance_grad=tolerance,
            tolerance_change=0.0,
            history_size=10,
            line_search_fn="strong_wolfe",
        )

        def compute_objective() -> Tensor:
            optimizer.zero_grad()

            objective = cross_entropy(_logits(x, mixture, weight, bias), y) + 0.5 * l2 * weight.square().sum()

            objective.backward()

            return objective

        optimizer.step(compute_objective)

    return LinearProbe(mean, scale, mixture.detach(), weight.detach(), bias.detach())


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Return the fraction of equal elements, in [0, 1]."""
    return (predictions == labels).double().mean().item()


def majority_accuracy(labels: Tensor, split: Split) -> float:
    """Return the accuracy on the test examples of always naming the most frequent class of the others."""
    majority = labels[split.fitted].mode().values

    return accuracy(majority.expand(split.test.numel()), labels[split.test])


def choose_probe(
    alternatives: Sequence[Tensor],
    labels: Tensor,
    split: Split,
    *,
    num_classes: int,
    l2_grid: Sequence[float] = DEFAULT_L2,
    max_iterations: int = 100,
) -> Choice:
    """Choose the alternative and the penalty by validation, refit on all but the test examples, and predict those.

    The alternative is chosen with the middle penalty, then the penalty for that alternative; the first of equals wins.
    The labels of the test examples are not read.

    :param alternatives: Features of the same examples, each (N, D) or (L, N, D).
    :param l2_grid: At least one penalty.
    """

    def fit(part: Tensor, index: int, l2: float) -> LinearProbe:
        return fit_probe(
            alternatives[index][..., part, :],
            labels[part],
            num_classes=num_classes,
            l2=l2,
            max_iterations=max_iterations,
        )

    def validate(index: int, l2: float) -> float:
        hits = [
            fit(train, index, l2).predict(alternatives[index][..., valid, :]) == labels[valid]
            for train, valid in split.tuning
        ]

        return torch.cat(hits).double().mean().item()

    penalties = sorted(l2_grid)

    middle = penalties[len(penalties) // 2]

    by_alternative = [validate(index, middle) for index in range(len(alternatives))]

    index = choose_best(by_alternative)

    by_penalty = [by_alternative[index] if l2 == middle else validate(index, l2) for l2 in penalties]

    l2 = penalties[choose_best(by_penalty)]

    probe = fit(split.fitted, index, l2)

    predictions = probe.predict(alternatives[index][..., split.test, :])

    return Choice(max(by_penalty), index, l2, predictions, probe.layer_weights)


def choose_best(valid_accuracies: Sequence[float]) -> int:
    """Return the index of the best candidate, a layer for example, by validation accuracy; the first of equals."""
    return max(range(len(valid_accuracies)), key=lambda index: (valid_accuracies[index], -index))


def fold_splits(folds: Tensor) -> list[Split]:
    """Return a split for each fold: it is the test part; the others choose by a cross-validation among themselves.

    :param folds: (N,) int64, the fold of each example.
    :raises ProbeError: If there are fewer than three folds.
    """
    numbers = sorted(set(folds.tolist()))

    if len(numbers) < 3:
        raise ProbeError(f"cross-validation needs at least 3 folds (train, valid, test), but there are {len(numbers)}.")

    def find(mask: Tensor) -> Tensor:
        return mask.nonzero().flatten()

    return [
        Split(
            tuning=[
                (find((folds != test) & (folds != valid)), find(folds == valid)) for valid in numbers if valid != test
            ],
            test=find(folds == test),
        )
        for test in numbers
    ]


def draw_folds(labels: Tensor, groups: Tensor, *, num_folds: int, seed: int) -> Tensor:
    """Return a fold for each example, (N,) int64 in [0, num_folds), drawn by ``seed`` alone.

    Classes are spread as evenly as groups allow. A class with fewer examples than folds is missing in some of them.

    :param labels: (N,) int64, the class of each example.
    :param groups: (N,) int64; examples of a group share their fold.
    :param seed: In [0, 2^32), the range of NumPy's generators that scikit-learn takes.
    :raises ProbeError: If every class has fewer examples than there are folds.
    """
    splitter = StratifiedGroupKFold(num_folds, shuffle=True, random_state=seed)

    folds = torch.empty_like(labels)

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")
        try:
            for number, (_, test) in enumerate(splitter.split(labels.numpy(), labels.numpy(), groups.numpy())):
                folds[torch.from_numpy(test)] = number
        except ValueError as error:
            raise ProbeError(f"examples cannot be divided into {num_folds} folds by chance: {error}") from None

    return folds


def subsample(indices: Tensor, limit: int | None, *, seed: int) -> Tensor:
    """Return at most ``limit`` of the indices, drawn without replacement by ``seed`` alone, in their order."""
    if limit is None or indices.numel() <= limit:
        return indices

    generator = torch.Generator().manual_seed(seed)

    return indices[torch.randperm(indices.numel(), generator=generator)[:limit].sort().values]


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    x = _to_float(features)

    scale, mean = torch.std_mean(x, dim=-2, correction=0, keepdim=True)  # (L, N, D) -> (L, 1, D)

    return mean, torch.where(scale > 1e-6 * mean.abs() + torch.finfo(x.dtype).tiny, scale, 1.0)


def _standardise(features: Tensor, mean: Tensor, scale: Tensor) -> Tensor:
    return (_to_float(features) - mean) / scale


def _to_float(features: Tensor) -> Tensor:
    # (N, D) -> (1, N, D)
    x = features.unsqueeze(0) if features.dim() == 2 else features

    return x if x.dtype == torch.float64 else x.float()


def _initial_parameters(x: Tensor, num_classes: int) -> tuple[Tensor, Tensor, Tensor]:
    num_layers, _, dim = x.shape

    mixture, weight, bias = x.new_zeros(num_layers), x.new_zeros(num_classes, dim), x.new_zeros(num_classes)

    return mixture.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()


def _logits(x: Tensor, mixture: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    # (L, N, D) -> (N, D)
    x = x.squeeze(0) if x.size(0) == 1 else torch.einsum("l,lnd->nd", mixture.softmax(dim=0), x)

    return torch.nn.functional.linear(x, weight, bias)
