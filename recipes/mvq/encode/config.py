from __future__ import annotations

from dataclasses import dataclass, field

from fairseq2.recipe.config import CommonSection, GangSection
from fairseq2.utils.validation import ValidationResult
from typing_extensions import override

from recipes.common import default_common_section
from recipes.parts import PartedCorpusSection
from recipes.targets import TargetSourceSection


@dataclass(kw_only=True)
class EncodeCorpusSection(PartedCorpusSection):
    rows_per_shard: int = 1000
    """Files of a shard, the unit of work: shards go to the processes in turn, a killed run loses unfinished ones."""

    @override
    def validate(self) -> ValidationResult:
        result = PartedCorpusSection.validate(self)

        if self.rows_per_shard < 1:
            result.add_error(f"`rows_per_shard` must be at least 1, but is {self.rows_per_shard}.")

        return result


def _single_threaded_section() -> CommonSection:
    """Return a common section with one thread for each process.

    The sums of a matrix product may depend on the number of threads, and codes must not: more cores are used by more
    processes (``torchrun``).
    """
    section = default_common_section()
    section.torch.num_threads = 1

    return section


@dataclass(kw_only=True)
class MvqEncodeConfig(TargetSourceSection):
    """Configuration of ``recipes.mvq.encode``."""

    corpus: EncodeCorpusSection = field(default_factory=EncodeCorpusSection)

    gang: GangSection = field(default_factory=GangSection)

    common: CommonSection = field(default_factory=_single_threaded_section)
