from __future__ import annotations

import random

import jiwer
import pytest

from spear_plugin.evaluation import count_errors, count_token_errors


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


def test_errors_of_tokens_are_the_smallest_number_of_edits() -> None:
    assert count_token_errors([1, 2, 3, 4], [1, 3, 5, 4]) == 2  # 2 is left out, 5 put in
    assert count_token_errors([1, 2], []) == 2
    assert count_token_errors([], [7]) == 1
    assert count_token_errors((12, 3), [1, 23]) == 2  # tokens, not digits
