"""Multi-codebook vector quantization (MVQ, arXiv 2211.00508) of teacher frames.

A frame is approximated by the sum of one entry of each codebook. A linear classifier for each codebook makes the first
choice, a joint search over all codebooks refines it.

Letters: B frames, D width, N codebooks, K entries of a codebook.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.nn import Linear, Parameter
from torch.nn.functional import linear
from typing_extensions import override

from spear_plugin.quantizers.base import FrameQuantizer, full_precision
from spear_plugin.quantizers.refinement import EntryProducts, compute_entry_products, refine_codes

_SCALE_SPEED: Final = 10.0  # the logarithms of the two scales are learnt this much faster than the weights


@dataclass(frozen=True)
class QuantizerLosses:
    """The terms of the training loss; scalars."""

    relative_reconstruction: Tensor
    """Squared error over the squared distance from the mean of all sums of entries; trains the codebooks."""

    classification: Tensor
    """Mean negative log-probability of the refined codes, in nats; trains the classifiers."""

    entropy: Tensor
    """What the entropy of the classifiers' mean prediction lacks to the uniform one, relative to it: 0 to 1."""

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


class MultiCodebookQuantizer(FrameQuantizer):
    """Represents a multi-codebook quantizer.

    Its state dict has the names and shapes of the package ``multi-quantization``, and ``mean`` and ``std`` besides if
    it normalizes. The search is the package's as well: the codes are equal, but for exact ties.
    """

    id_buf: Tensor

    def __init__(self, dim: int, codebook_size: int, num_codebooks: int, *, normalize: bool = False) -> None:
        """Make a quantizer with random weights.

        Args:
            dim: Width of the frames.
            codebook_size: Number of entries of a codebook, a power of two up to 256.
            num_codebooks: A power of two.
            normalize: Standardize the frames by the buffers ``mean`` and ``std``.

        Raises:
            ValueError: A number is not a power of two, or the codes do not fit into bytes.
        """
        super().__init__(dim, codebook_size, num_codebooks, normalize=normalize)
        for name, value in (("codebook_size", codebook_size), ("num_codebooks", num_codebooks)):
            if value < 1 or value & (value - 1):
                raise ValueError(f"`{name}` must be a power of two, but is {value} instead.")
        if codebook_size > 256:
            raise ValueError(f"`codebook_size` must be at most 256 (a code is a byte), but is {codebook_size} instead.")
        self.to_logits = Linear(dim, codebook_size * num_codebooks)
        self.centers = Parameter(torch.empty(num_codebooks, codebook_size, dim))
        self.logits_scale = Parameter(torch.empty(()))
        self.centers_scale = Parameter(torch.empty(()))
        self.register_buffer("id_buf", torch.empty(8, dtype=torch.uint8))
        self._entry_products: tuple[object, EntryProducts] | None = None
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Reset the parameters and buffers; the codebooks start as copies of the classifiers' weights."""
        self.to_logits.reset_parameters()
        self.centers.copy_(self.to_logits.weight.view_as(self.centers))
        self.logits_scale.zero_()
        self.centers_scale.zero_()
        # Eight hexadecimal digits in ASCII: the label by which the package tells quantizers apart.
        digits = torch.randint(0, 16, (8,), device=self.id_buf.device)
        self.id_buf.copy_(torch.where(digits < 10, digits + ord("0"), digits + (ord("a") - 10)))
        self._reset_statistics()

    @torch.no_grad()
    @override
    def encode(self, x: Tensor, num_refinements: int = 5) -> Tensor:
        """Return the codes of frames.

        Args:
            x: Frames in the teacher's scale, of any floating-point type (..., D).
            num_refinements: Number of passes of the joint search; 0 gives the classifiers' choices.

        Returns:
            Codes (..., N), uint8; the same whatever the batch, the type of autocast and TF32.
        """
        with full_precision(x):
            products = self._products(self.entries(), changed=self.training) if num_refinements > 0 else None

        def choose(frames: Tensor) -> Tensor:
            return self._refine(frames, self._logits(frames).argmax(dim=-1), num_refinements, products)

        return self._encode_chunks(x, choose)

    def compute_loss(self, x: Tensor, *, num_refinements: int = 1, entropy_weight: float = 0.01) -> QuantizerLosses:
        """Return the training losses of frames.

        Args:
            x: Frames in the teacher's scale (B, D).
            num_refinements: Of the codes that the classifiers learn to predict and the codebooks to decode.
            entropy_weight: Of the usage of the codebooks in the total loss.
        """
        with full_precision(x):
            x = self.standardize(x)
            # (B, D) -> (B, N, K)
            logits = self._logits(x)
            entries = self.entries()
            products = self._products(entries.detach(), changed=True) if num_refinements > 0 else None
            codes = self._refine(x, logits.detach().argmax(dim=-1), num_refinements, products)
            mean = entries.detach().mean(dim=1).sum(dim=0)
            error = (self._sum_entries(codes, entries) - x).square().sum()
            log_probs = logits.log_softmax(dim=-1)
            return QuantizerLosses(
                error / ((x - mean).square().sum() + 1e-20),
                -log_probs.gather(-1, codes[..., None]).mean(),
                _missing_entropy(log_probs.exp().mean(dim=0)),
                entropy_weight,
            )

    @override
    def entries(self) -> Tensor:
        return self.centers.float() * (_SCALE_SPEED * self.centers_scale.float()).exp()

    def _logits(self, x: Tensor) -> Tensor:
        """Return the classifiers' logits (B, N, K) of standardized frames (B, D)."""
        # The scale belongs to the frames; applied afterwards, its gradient takes no matrix product.
        scale = (_SCALE_SPEED * self.logits_scale.float()).exp()
        logits = linear(x, self.to_logits.weight.float()) * scale + self.to_logits.bias.float()
        return logits.view(-1, self.num_codebooks, self.codebook_size)

    @torch.no_grad()
    def _refine(self, x: Tensor, codes: Tensor, num_refinements: int, products: EntryProducts | None) -> Tensor:
        """Return refined codes (B, N) of standardized frames (B, D)."""
        if products is None:
            return codes
        # (B, D) -> (B, N, K): |c|² - 2 <x, c>
        scores = torch.addmm(products.square_norms, x, products.entries.T, alpha=-2.0)
        return refine_codes(codes, scores.view(-1, self.num_codebooks, self.codebook_size), products, num_refinements)

    def _products(self, entries: Tensor, *, changed: bool) -> EntryProducts:
        """Return the inner products of the entries, computed anew only if the weights have changed.

        In training their versions do not tell, since fused optimizers leave them alone; such products must not last.
        """
        weights = (self.centers, self.centers_scale)
        key = None if changed else [(w.data_ptr(), 0 if w.is_inference() else w._version) for w in weights]
        old_key, products = self._entry_products or (None, None)
        if products is None or key is None or key != old_key:
            products = compute_entry_products(entries, out=products)
            self._entry_products = key, products
        return products


def _missing_entropy(probs: Tensor) -> Tensor:
    """Return what the mean entropy of distributions (N, K) lacks to the uniform one, relative to it."""
    entropy: Tensor = torch.special.entr(probs).sum(dim=-1).mean()
    return 1.0 - entropy / math.log(probs.size(-1))
