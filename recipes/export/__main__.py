"""Export a model of SPEAR, SpidR or DinoSR as a program for other runtimes: ONNX, or torch.export.

    python -m recipes.export OUT --config model=RUN                     OUT/model.onnx, with the model's output
    python -m recipes.export OUT --config model=CARD layers='[4, 5]'    the outputs of layers, counted from 0
    python -m recipes.export OUT --config model=RUN format=torch        OUT/model.pt2, for torch.export.load

The program takes waveforms, (N, S) float32 in [-1, 1] at 16 kHz, and lengths, (N,) int64 in samples; S may be any from
8,000 on. It gives features, (N, T, D) float32 (or layer_4, layer_5), and num_frames, (N,) int64: an utterance has the
features that it has alone. Log-mel and SpidR's standardization are parts of it. The ONNX file's metadata tell family,
sample rate, frames a second, width and the rest. It is run by onnxruntime on batches of several lengths before it is
written to OUT; a difference above max_difference of the largest value is an error.

any_batch=false makes a program for one utterance at a time, in less than half of the time. ONNX needs the packages of
the extra `export`. OUT must stand before --config, which takes all values that follow it. For weights in the authors'
layout see recipes.spear.export. Everything that can be set: --dump-config.
"""

from __future__ import annotations

from recipes.common import main
from recipes.export.recipe import ExportRecipe

if __name__ == "__main__":
    main(ExportRecipe(), __doc__)
