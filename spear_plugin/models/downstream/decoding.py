"""From the log-probabilities of CTC to tokens, without a language model. Letters: N batch, T frames, V tokens.

Token 0 is the blank. A path has a token for each frame; repeated tokens are one unless a blank stands between them.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Final, TypeAlias

from torch import Tensor

BLANK: Final = 0

Prefix: TypeAlias = tuple[int, ...]


def decode_greedily(log_probs: Tensor, lengths: Sequence[int]) -> list[list[int]]:
    """Return the tokens of the likeliest path of each utterance.

    Args:
        log_probs: (N, T, V).
        lengths: N numbers of valid frames.
    """
    paths = log_probs.argmax(dim=2).tolist()
    return [collapse(path[:length]) for path, length in zip(paths, lengths, strict=True)]


def collapse(path: Iterable[int]) -> list[int]:
    """Return the tokens of a path: repetitions become one, then blanks are left out."""
    tokens, last = [], BLANK
    for token in path:
        if token not in (BLANK, last):
            tokens.append(token)
        last = token
    return tokens


def decode_by_prefix_beam(log_probs: Tensor, *, beam_size: int, max_candidates: int | None = None) -> list[int]:
    """Return the tokens with the largest probability, summed over their paths (Graves et al., ICML 2006; Hannun 2014).

    With a beam as large as there are token sequences this is exact.

    Args:
        log_probs: (T, V) of one utterance, without padding.
        beam_size: Sequences kept after each frame.
        max_candidates: Tokens looked at in each frame, the likeliest; by default as many as ``beam_size``.
    """
    num_candidates = min(max_candidates or beam_size, log_probs.size(1))
    values, indices = log_probs.topk(num_candidates, dim=1)
    blanks = log_probs[:, BLANK].tolist()
    beam: _Beam = {(): (0.0, -math.inf)}
    for blank, scores, tokens in zip(blanks, values.tolist(), indices.tolist(), strict=True):
        candidates = [(token, score) for token, score in zip(tokens, scores, strict=True) if token != BLANK]
        grown = _extend(beam, blank, candidates, dict(candidates))
        ranked = sorted(grown.items(), key=lambda entry: -_add(*entry[1]))
        beam = dict(ranked[:beam_size])
    return list(next(iter(beam)))


_Beam: TypeAlias = dict[Prefix, tuple[float, float]]
"""For each sequence, the log-probability of its paths that end with a blank, and of those that end with its token."""


def _extend(beam: _Beam, blank: float, candidates: list[tuple[int, float]], scores: dict[int, float]) -> _Beam:
    """Return what the beam becomes with one more frame."""
    grown: dict[Prefix, list[float]] = defaultdict(lambda: [-math.inf, -math.inf])
    for prefix, (with_blank, with_token) in beam.items():
        total = _add(with_blank, with_token)
        same = grown[prefix]
        same[0] = _add(same[0], total + blank)
        if prefix and prefix[-1] in scores:
            same[1] = _add(same[1], with_token + scores[prefix[-1]])
        for token, score in candidates:
            # A token right after itself would be the same one: only paths that end with a blank lead to two of them.
            before = with_blank if prefix and prefix[-1] == token else total
            longer = grown[(*prefix, token)]
            longer[1] = _add(longer[1], before + score)
    return {prefix: (entry[0], entry[1]) for prefix, entry in grown.items()}


def _add(a: float, b: float) -> float:
    """Return log(exp(a) + exp(b))."""
    if a < b:
        a, b = b, a
    return a if b == -math.inf else a + math.log1p(math.exp(b - a))
