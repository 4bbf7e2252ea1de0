"""Features of a task's items, extracted in one pass over the audio.

Letters: L layers, N items of a task, B batch, S samples, T frames, D width, I items of a file.
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

from recipes.feature_sources import FeatureSource
from recipes.probe.task_files import Clip
from recipes.probe.tasks import Features, ProbeTask
from spear_plugin.data.audio import read_audio
from spear_plugin.data.manifest import Seconds
from spear_plugin.evaluation import ProbeError

_MIN_SECONDS: Final = 0.2
"""Shorter files, single drum hits for example, are followed by silence: no source has a frame for the shortest ones."""


def extract_features(
    source: FeatureSource,
    tasks: Sequence[ProbeTask],
    *,
    max_batch_seconds: Seconds,
    device: torch.device,
    report: Callable[[int], None],
) -> list[Features]:
    """Return, for each task, what it makes of the frames of its items, on the host.

    :param report: Called with the number of files of each batch.
    :raises AudioError: If a file cannot be read.
    :raises ProbeError: If features are not finite.
    """
    clips = {clip.path: clip for task in tasks for clip in task.items.clips}

    items_of_path = [_group_items(task) for task in tasks]

    outputs: list[Features] = [[] for _ in tasks]

    for batch in _make_batches(list(clips.values()), max_batch_seconds):
        for clip, layers in zip(batch, _extract_batch(source, batch, device), strict=True):
            for number, task in enumerate(tasks):
                if (items := items_of_path[number].get(clip.path)) is None:
                    continue

                described = task.describe(layers, items, source.timing)

                if not all(x.isfinite().all() for x in described):
                    raise ProbeError(f"{clip.path}: the features must be finite float16 numbers, but are not.")

                outputs[number] = _put(outputs[number], items, described, len(task.items.items))

        report(len(batch))

    return outputs


def _put(output: Features, items: Tensor, described: Features, num_items: int) -> Features:
    """Put what some items are described by to its places in the task's features, which are made for the first ones."""
    if isinstance(described, Tensor):
        if isinstance(output, list):
            output = described.new_zeros(*described.shape[:2], num_items, described.size(-1))

        output[:, :, items] = described
    else:
        assert isinstance(output, list)

        output = output or [torch.empty(0)] * num_items

        for item, sequence in zip(items.tolist(), described, strict=True):
            output[item] = sequence

    return output


def _group_items(task: ProbeTask) -> dict[Path, Tensor]:
    """Return the items of each file, (I,) int64."""
    items = defaultdict(list)

    for item, clip in enumerate(task.items.clip.tolist()):
        items[task.items.clips[clip].path].append(item)

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
