from __future__ import annotations

import random

import jiwer
import pytest

from spear_plugin.evaluation import count_errors


def test_errors_are_those_of_jiwer() -> None:
    generator = random.Random(0)
    words = ["press", "one", "to", "record", "please"]
    for _ in range(50):
        reference = " ".join(generator.choices(words, k=generator.randint(1, 8)))
        hypothesis = " ".join(generator.choices(words, k=generator.randint(0, 8)))
        errors = count_errors(reference, hypothesis)
        assert errors.word_errors / errors.num_words == pytest.approx(jiwer.wer(reference, hypothesis))
        assert errors.character_errors / errors.num_characters == pytest.approx(jiwer.cer(reference, hypothesis))


def test_white_space_does_not_matter() -> None:
    assert count_errors("press  one ", " press one") == count_errors("press one", "press one")
    assert count_errors("press one", "press one").word_errors == 0


def test_nothing_understood_is_an_error_for_each_word_and_character() -> None:
    errors = count_errors("press one", "")
    assert (errors.word_errors, errors.num_words) == (2, 2)
    assert (errors.character_errors, errors.num_characters) == (9, 9)
