"""Features of a task's items, extracted in one pass over the audio.

Letters: A time shifts, L layers, N items of a task, B batch, S samples, T frames, D width, I items of a file.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor
from torch.nn.functional import pad
from torch.nn.utils.rnn import pad_sequence

from recipes.feature_sources import FeatureSource, FrameTiming
from recipes.probe.tasks import Clip, ProbeTask
from spear_plugin.data.audio import read_audio
from spear_plugin.data.manifest import Seconds
from spear_plugin.evaluation import ProbeError

_MIN_SECONDS: Final = 0.2
"""Shorter files, single drum hits for example, are followed by silence: no source has a frame for the shortest ones."""


def extract_features(
    source: FeatureSource,
    tasks: Sequence[ProbeTask],
    *,
    time_shifts: Sequence[Seconds],
    max_batch_seconds: Seconds,
    device: torch.device,
    report: Callable[[int], None],
) -> list[Tensor]:
    """Return, for each task, (A, L, N, D) float16 for moments, or (1, L, N, 2D) float32 for segments.

    A moment is described by the frame nearest to it, after each of the time shifts; a segment by mean and standard
    deviation of its frames.

    :param report: Called with the number of files of each batch.
    :raises AudioError: If a file cannot be read.
    :raises ProbeError: If features are not finite.
    """
    clips = {clip.path: clip for task in tasks for clip in task.clips}

    items_of_path = [_group_items(task) for task in tasks]

    outputs: dict[int, Tensor] = {}

    for batch in _make_batches(list(clips.values()), max_batch_seconds):
        for clip, layers in zip(batch, _extract_batch(source, batch, device), strict=True):
            for number, task in enumerate(tasks):
                if (items := items_of_path[number].get(clip.path)) is None:
                    continue

                x = _describe(layers, task, items, source.timing, time_shifts)

                if not x.isfinite().all():
                    raise ProbeError(f"{clip.path}: the features must be finite float16 numbers, but are not.")

                if number not in outputs:
                    outputs[number] = x.new_zeros(*x.shape[:2], task.labels.numel(), x.size(-1))

                outputs[number][:, :, items] = x

        report(len(batch))

    return [outputs[number] for number in range(len(tasks))]


def _group_items(task: ProbeTask) -> dict[Path, Tensor]:
    """Return the items of each file, (I,) int64."""
    items = defaultdict(list)

    for item, clip in enumerate(task.clip.tolist()):
        items[task.clips[clip].path].append(item)

    return {path: torch.tensor(numbers) for path, numbers in items.items()}


def _make_batches(clips: list[Clip], max_batch_seconds: Seconds) -> Iterator[list[Clip]]:
    """Yield batches of similar lengths, the longest files first, so that too large a batch fails at once."""
    batch: list[Clip] = []

    for clip in sorted(clips, key=lambda clip: (-clip.duration, clip.id)):
        if batch and batch[0].duration * (len(batch) + 1) > max_batch_seconds:
            yield batch

            batch = []

        batch.append(clip)

    if batch:
        yield batch


def _extract_batch(source: FeatureSource, batch: list[Clip], device: torch.device) -> list[Tensor]:
    """Return (L, T, D) of each file."""
    waveforms = [_read_waveform(clip, source.sample_rate) for clip in batch]

    lengths = torch.tensor([waveform.numel() for waveform in waveforms])

    padded = pad_sequence(waveforms, batch_first=True)  # (B, S)

    with torch.inference_mode():
        layers, num_frames = source.extract(padded.to(device), lengths.to(device))  # L x (B, T, D), (B,)

        stacked = torch.stack(layers).float().cpu()  # (L, B, T, D)

    for clip, count in zip(batch, num_frames.tolist(), strict=True):
        if count < 1:
            raise ProbeError(f"{clip.path}: too short for one frame of features. Leave the file out of the task.")

    return [stacked[:, index, :count] for index, count in enumerate(num_frames.tolist())]


def _read_waveform(clip: Clip, sample_rate: int) -> Tensor:
    waveform = torch.from_numpy(read_audio(clip.path, sample_rate=sample_rate))

    return pad(waveform, (0, max(0, round(_MIN_SECONDS * sample_rate) - waveform.numel())))


def _describe(
    layers: Tensor, task: ProbeTask, items: Tensor, timing: FrameTiming, time_shifts: Sequence[Seconds]
) -> Tensor:
    if task.is_framewise:
        return _gather_moments(layers, task.start[items], timing, time_shifts).half()

    return _pool_segments(layers, task.start[items], task.end[items], timing)


def _gather_moments(layers: Tensor, times: Tensor, timing: FrameTiming, shifts: Sequence[Seconds]) -> Tensor:
    # (L, T, D) -> A x (L, I, D) -> (A, L, I, D)
    return torch.stack([layers[:, timing.nearest_frames(times + shift, layers.size(1))] for shift in shifts])


def _pool_segments(layers: Tensor, starts: Tensor, ends: Tensor, timing: FrameTiming) -> Tensor:
    """Return (1, L, I, 2D)."""
    pooled = []

    num_frames = layers.size(1)

    # The first and the last frame whose centres lie in the segment; at least one.
    first = timing.nearest_frames(starts + 0.5 / timing.rate_hz, num_frames).tolist()

    last = timing.nearest_frames(ends - 0.5 / timing.rate_hz, num_frames).tolist()

    for begin, end in zip(first, last, strict=True):
        # (L, T, D) -> (L, D)
        std, mean = torch.std_mean(layers[:, begin : max(begin, end) + 1], dim=1, correction=0)

        pooled.append(torch.cat([mean, std], dim=-1))

    return torch.stack(pooled, dim=1).unsqueeze(0)
