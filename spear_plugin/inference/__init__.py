"""Features of recordings of any length, and models as programs for other runtimes, for SPEAR and SpidR alike."""

from spear_plugin.inference.long_recordings import check_chunks as check_chunks
from spear_plugin.inference.long_recordings import extract_features_in_chunks as extract_features_in_chunks
from spear_plugin.inference.programs import INPUT_NAMES as INPUT_NAMES
from spear_plugin.inference.programs import MIN_PROGRAM_SAMPLES as MIN_PROGRAM_SAMPLES
from spear_plugin.inference.programs import FeatureProgram as FeatureProgram
from spear_plugin.inference.programs import export_program as export_program
