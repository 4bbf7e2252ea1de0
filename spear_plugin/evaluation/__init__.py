from __future__ import annotations

from spear_plugin.evaluation.bootstrap import Interval as Interval
from spear_plugin.evaluation.bootstrap import bootstrap_interval as bootstrap_interval
from spear_plugin.evaluation.bootstrap import paired_bootstrap_interval as paired_bootstrap_interval
from spear_plugin.evaluation.bootstrap import ratio_bootstrap_interval as ratio_bootstrap_interval
from spear_plugin.evaluation.codebooks import codebook_entropies as codebook_entropies
from spear_plugin.evaluation.codebooks import codebook_perplexity as codebook_perplexity
from spear_plugin.evaluation.codebooks import codebook_usage as codebook_usage
from spear_plugin.evaluation.error_rates import ErrorCounts as ErrorCounts
from spear_plugin.evaluation.error_rates import count_errors as count_errors
from spear_plugin.evaluation.precision import mean_average_precision as mean_average_precision
from spear_plugin.evaluation.probe import DEFAULT_L2 as DEFAULT_L2
from spear_plugin.evaluation.probe import Choice as Choice
from spear_plugin.evaluation.probe import LinearProbe as LinearProbe
from spear_plugin.evaluation.probe import ProbeError as ProbeError
from spear_plugin.evaluation.probe import Split as Split
from spear_plugin.evaluation.probe import accuracy as accuracy
from spear_plugin.evaluation.probe import choose_best as choose_best
from spear_plugin.evaluation.probe import choose_probe as choose_probe
from spear_plugin.evaluation.probe import fit_probe as fit_probe
from spear_plugin.evaluation.probe import fold_splits as fold_splits
from spear_plugin.evaluation.probe import majority_accuracy as majority_accuracy
from spear_plugin.evaluation.probe import subsample as subsample
