from __future__ import annotations

from dataclasses import dataclass

from recipes.evaluating import EvaluationConfig


@dataclass(kw_only=True)
class TaggingEvaluateConfig(EvaluationConfig):
    """Configuration of ``recipes.tagging.evaluate``."""
