"""Transcripts as tokens: tokenizers by what a user calls them, and which transcripts a tokenizer can write."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Final, final

import torch
from fairseq2.assets import AssetCard, AssetCardError, AssetDownloadError, AssetMetadataError, get_asset_store
from fairseq2.data.tokenizers import (
    Tokenizer,
    TokenizerFamilyNotKnownError,
    TokenizerGatedError,
    TokenizerModelError,
    load_tokenizer,
)
from fairseq2.data.tokenizers.char import CHAR_TOKENIZER_FAMILY
from fairseq2.error import OperationalError
from fairseq2.recipe.error import RecipeError

from spear_plugin.models.downstream import BLANK

TOKENIZER_FILE: Final = "tokenizer.model"

_LOAD_ERRORS: Final = (
    AssetCardError,
    AssetDownloadError,
    AssetMetadataError,
    OperationalError,
    OSError,
    TokenizerFamilyNotKnownError,
    TokenizerGatedError,
    TokenizerModelError,
)


@final
class TranscriptCodec:
    """Writes transcripts as tokens and reads them again.

    Args:
        tokenizer: A tokenizer of fairseq2 whose token 0 stands in no text: it is the blank of CTC.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encoder = tokenizer.create_encoder()
        self._decoder = tokenizer.create_decoder()
        self._unknown = tokenizer.vocab_info.unk_idx
        self.vocabulary_size = tokenizer.vocab_info.size

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; nothing for white space."""
        tokens: list[int] = self._encoder(text).tolist()
        return tokens

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, without white space at its ends; unknown tokens are left out."""
        return self._write([token for token in tokens if token not in (BLANK, self._unknown)])

    def normalize(self, text: str) -> str:
        """Return a text as the tokenizer writes it, for example in lower case: what hypotheses are compared with.

        Unknown characters stand there as a sign of their own, so that every hypothesis is wrong about them.
        """
        return self._write(self.encode(text))

    def _write(self, tokens: Sequence[int]) -> str:
        return " ".join(self._decoder(torch.tensor(tokens, dtype=torch.int64)).split())

    def is_writable(self, tokens: Sequence[int]) -> bool:
        """Return whether all characters of a text with these tokens are known."""
        return self._unknown not in tokens


def open_tokenizer(reference: str, where: str) -> TranscriptCodec:
    """Load a tokenizer.

    Args:
        reference: Name of the card of a tokenizer, or of a model with one; or folder that ``recipes.asr.tokenizer``
            wrote.
        where: The configuration's key, which messages begin with.

    Raises:
        RecipeError: If there is no such tokenizer, or it cannot be loaded.
    """
    path = Path(reference) / TOKENIZER_FILE
    if path.is_file():
        card = AssetCard(
            path.parent.name, {"tokenizer_family": CHAR_TOKENIZER_FAMILY, "tokenizer": str(path.resolve())}
        )
    elif (found := _find_card(reference, where)) is not None:
        card = found
    else:
        raise RecipeError(
            f"{where}: must be the name of a tokenizer's card, or a folder with {TOKENIZER_FILE}, but '{reference}' is "
            "neither. Make one with `recipes.asr.tokenizer`."
        )
    try:
        tokenizer = load_tokenizer(card)
    except _LOAD_ERRORS as ex:
        raise RecipeError(f"{where}: the tokenizer of '{reference}' cannot be loaded: {ex}") from None
    return TranscriptCodec(tokenizer)


def num_frames_needed(tokens: Sequence[int]) -> int:
    """Return the smallest number of frames in which CTC can say tokens: a blank must part two equal ones."""
    return len(tokens) + sum(a == b for a, b in pairwise(tokens))


def _find_card(name: str, where: str) -> AssetCard | None:
    try:
        return get_asset_store().maybe_retrieve_card(name)
    except _LOAD_ERRORS as ex:
        raise RecipeError(f"{where}: {ex}") from None
