"""Multi-codebook vector quantization (MVQ, arXiv 2211.00508) of teacher frames.

A frame is approximated by the sum of one entry of each codebook. A linear classifier per codebook makes a first choice,
a joint search over all codebooks refines it.

Letters: B frames, D width, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import Linear, Module, Parameter, functional

from spear_plugin.quantizers.refinement import EntryProducts, compute_entry_products, refine_codes

_SCALE_SPEED: Final = (
    10.0  # the two scales are learnt on a logarithmic scale, this much faster than the other parameters
)

_STD_FLOOR: Final = 1e-5

# Frames whose scores are held at once: 64 MiB at 4,096 entries on a CPU, 1 GiB on a GPU.
_CPU_SCORES: Final = 2**22
_GPU_SCORES: Final = 2**28


@dataclass(frozen=True)
class QuantizerLosses:
    """The terms of the training loss (MVQ, section 3); scalars."""

    relative_reconstruction: Tensor
    """Squared error over the squared distance from the mean of a random code; trains the codebooks."""

    classification: Tensor
    """Mean negative log-probability of the refined codes, in nats; trains the classifiers."""

    entropy: Tensor
    """What the entropy of the classifiers' mean prediction lacks to uniform usage, 0 to 1."""

    entropy_weight: float

    @property
    def total(self) -> Tensor:
        return self.relative_reconstruction + self.classification + self.entropy_weight * self.entropy

    def detach(self) -> QuantizerLosses:
        return QuantizerLosses(
            self.relative_reconstruction.detach(),
            self.classification.detach(),
            self.entropy.detach(),
            self.entropy_weight,
        )


class MultiCodebookQuantizer(Module):
    """Represents a multi-codebook quantizer; its state dict is that of the package ``multi-quantization``.

    ``mean`` and ``std`` are additional entries, present if ``normalize``.
    """

    id_buf: Tensor
    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, codebook_size: int, num_codebooks: int, *, normalize: bool = False) -> None:
        """:param dim: The width of the frames.
        :param codebook_size: The number of entries of a codebook, a power of two up to 256.
        :param num_codebooks: A power of two.
        :param normalize: If ``True``, standardizes the frames by the buffers ``mean`` and ``std``.
        """
        super().__init__()

        for name, value in (("codebook_size", codebook_size), ("num_codebooks", num_codebooks)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"`{name}` must be a power of two, but is {value} instead.")

        if codebook_size > 256:
            raise ValueError(
                f"`codebook_size` must be at most 256, since a code is a byte, but is {codebook_size} instead."
            )

        self.dim = dim
        self.codebook_size = codebook_size
        self.num_codebooks = num_codebooks
        self.normalize = normalize

        self.to_logits = Linear(dim, codebook_size * num_codebooks)

        self.centers = Parameter(torch.empty(num_codebooks, codebook_size, dim))

        self.logits_scale = Parameter(torch.empty(()))
        self.centers_scale = Parameter(torch.empty(()))

        self.register_buffer("id_buf", torch.empty(8, dtype=torch.uint8))

        if normalize:
            self.register_buffer("mean", torch.empty(dim))
            self.register_buffer("std", torch.empty(dim))

        self._entry_products: tuple[object, EntryProducts] | None = None

        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Reset the parameters and buffers; the codebooks start as copies of the classifiers' weights."""
        self.to_logits.reset_parameters()

        with torch.no_grad():
            self.centers.copy_(self.to_logits.weight.view_as(self.centers))

            self.logits_scale.zero_()
            self.centers_scale.zero_()

            # Eight hexadecimal digits in ASCII; a label that the package prints, without meaning here.
            digits = torch.randint(0, 16, (8,), device=self.id_buf.device)

            self.id_buf.copy_(torch.where(digits < 10, digits + ord("0"), digits + (ord("a") - 10)))

            if self.normalize:
                self.mean.zero_()
                self.std.fill_(1.0)

    def compute_loss(self, x: Tensor, *, num_refinements: int = 1, entropy_weight: float = 0.01) -> QuantizerLosses:
        """Return the training losses of frames.

        :param x: Frames in the teacher's scale (B, D).
        :param num_refinements: Of the codes that the classifiers are trained to predict.
        """
        with _full_precision(x):
            x = self.standardize(x)

            logits = self._logits(x)
            # (B, N, K)

            codes = self._refine(x, logits.detach().argmax(dim=-1), num_refinements)
            # (B, N)

            mean = self.entries().detach().mean(dim=1).sum(dim=0)
            # (D)

            error = (self._sum_entries(codes) - x).square().sum()

            log_probs = logits.log_softmax(dim=-1)

            return QuantizerLosses(
                error / ((x - mean).square().sum() + 1e-20),
                -log_probs.gather(-1, codes[..., None]).mean(),
                _missing_entropy(log_probs.exp().mean(dim=0)),
                entropy_weight,
            )

    @torch.no_grad()
    def encode(self, x: Tensor, num_refinements: int = 5) -> Tensor:
        """Return the codes of frames.

        :param x: Frames in the teacher's scale, of any floating-point type (..., D).
        :param num_refinements: The number of passes of the joint search; 0 gives the classifiers' choices.
        :returns: (..., N), uint8.
        """
        if x.size(-1) != self.dim:
            raise ValueError(
                f"`x` must have {self.dim} channels in its last dimension, but has shape {tuple(x.shape)}."
            )

        with _full_precision(x):
            codes = [
                self._encode(chunk, num_refinements) for chunk in x.reshape(-1, self.dim).split(self._chunk_size(x))
            ]

        return torch.cat(codes).to(torch.uint8).view(*x.shape[:-1], self.num_codebooks)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """Return the frames (..., D), float32, in the teacher's scale, of codes (..., N) of an integer type."""
        with _full_precision(codes):
            x = self._sum_entries(codes.long())

            return x * (self.std + _STD_FLOOR) + self.mean if self.normalize else x

    def set_statistics(self, mean: Tensor, std: Tensor) -> None:
        """Set the mean and the standard deviation of the frames (D)."""
        self.mean.copy_(mean)
        self.std.copy_(std)

    def standardize(self, x: Tensor) -> Tensor:
        """Return frames (..., D) as the codebooks approximate them, float32; unchanged without normalization."""
        x = x.float()

        return (x - self.mean) / (self.std + _STD_FLOOR) if self.normalize else x

    def _encode(self, x: Tensor, num_refinements: int) -> Tensor:
        x = self.standardize(x)

        return self._refine(x, self._logits(x).argmax(dim=-1), num_refinements)

    def _chunk_size(self, x: Tensor) -> int:
        return max((_GPU_SCORES if x.is_cuda else _CPU_SCORES) // (self.num_codebooks * self.codebook_size), 1)

    def _logits(self, x: Tensor) -> Tensor:
        """Return the classifiers' logits (B, N, K) of standardized frames (B, D)."""
        x = x * (_SCALE_SPEED * self.logits_scale.float()).exp()

        logits = functional.linear(x, self.to_logits.weight.float(), self.to_logits.bias.float())

        return logits.view(-1, self.num_codebooks, self.codebook_size)

    def entries(self) -> Tensor:
        """Return the codebooks at their scale, float32 (N, K, D)."""
        return self.centers.float() * (_SCALE_SPEED * self.centers_scale.float()).exp()

    def _sum_entries(self, codes: Tensor) -> Tensor:
        """Return the standardized frames (..., D) of codes (..., N), int64."""
        first_entries = torch.arange(self.num_codebooks, device=codes.device) * self.codebook_size

        entries = self.entries().flatten(0, 1)

        x = functional.embedding_bag(codes.reshape(-1, self.num_codebooks) + first_entries, entries, mode="sum")

        return x.view(*codes.shape[:-1], self.dim)

    @torch.no_grad()
    def _refine(self, x: Tensor, codes: Tensor, num_refinements: int) -> Tensor:
        if num_refinements == 0:
            return codes

        entries, products = self.entries(), self._products()

        # |c|² - 2 <x, c>
        scores = torch.addmm(products.square_norms.flatten(), x, entries.flatten(0, 1).T, alpha=-2.0)

        return refine_codes(codes, scores.view(-1, self.num_codebooks, self.codebook_size), products, num_refinements)

    def _products(self) -> EntryProducts:
        """Return the inner products of the entries, computed anew only after the weights have changed."""
        weights = (self.centers, self.centers_scale)

        key = [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]

        if self._entry_products is None or self._entry_products[0] != key:
            self._entry_products = None  # frees the old ones before the new ones are made

            self._entry_products = key, compute_entry_products(self.entries())

        return self._entry_products[1]

    def extra_repr(self) -> str:
        """:meta private:"""
        return (
            f"dim={self.dim}, codebook_size={self.codebook_size}, num_codebooks={self.num_codebooks}, "
            f"normalize={self.normalize}"
        )


def _missing_entropy(probs: Tensor) -> Tensor:
    """Return what the mean entropy of distributions (N, K) lacks to the uniform one, relative to it."""
    max_entropy = math.log(probs.size(-1))

    return 1.0 - torch.special.entr(probs).sum(dim=-1).mean() / max_entropy


@contextmanager
def _full_precision(x: Tensor) -> Iterator[None]:
    """Compute in float32 also under autocast and where TF32 is allowed: codes must not depend on either."""
    with torch.autocast(x.device.type, enabled=False):
        if not x.is_cuda:
            yield

            return

        matmul = torch.backends.cuda.matmul

        precision, matmul.fp32_precision = matmul.fp32_precision, "ieee"

        try:
            yield
        finally:
            matmul.fp32_precision = precision
