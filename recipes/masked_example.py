"""One recording behind a mask: what the student saw, what the teacher said, what the student guessed."""

from __future__ import annotations

from pathlib import Path

import torch
from matplotlib.figure import Figure

from recipes.figures import draw_masked_prediction
from spear_plugin.data.audio import read_audio
from spear_plugin.data.codes import CodeStore
from spear_plugin.data.manifest import ManifestRow, read_manifest
from spear_plugin.models.spear import SpearModel
from spear_plugin.models.spear.fbank import compute_fbank


def choose_row(manifest: Path, *, min_seconds: float = 3.0, max_seconds: float = 6.0) -> ManifestRow:
    """Return the first row whose picture is neither too short nor too wide, English if there is one."""
    rows = read_manifest(manifest)
    fitting = [row for row in rows if min_seconds <= row.duration <= max_seconds] or rows
    return next((row for row in fitting if row.language == "en"), fitting[0])


@torch.inference_mode()
def draw_example(
    model: SpearModel, row: ManifestRow, store: CodeStore, *, stream: str = "speech", seed: int = 1
) -> Figure:
    """Mask a recording, predict its codes and draw both.

    Args:
        model: The student.
        row: The recording.
        store: The teacher's codes.
        stream: The target stream whose head is drawn.
        seed: Of the mask.
    """
    model.eval()
    waveform = torch.from_numpy(read_audio(row.path))
    fbank, lengths = compute_fbank(waveform[None], torch.tensor([len(waveform)]))  # (1, F, M)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        masks = model.masker.draw(fbank, lengths)
    features = model.extract_features_from_fbank(masks.apply(fbank, model.mask_emb), lengths)
    predicted = model.get_head(stream).predict(features.last).argmax(dim=-1)[0]  # (T, K)
    codes = torch.from_numpy(store[row.id].copy()).long()[: len(predicted)]
    return draw_masked_prediction(
        fbank[0].numpy(), masks.time[0].numpy(), codes.numpy(), predicted[: len(codes)].numpy()
    )
