r"""Probes on frozen features: what can be read from a model's layers, a teacher, or log-mel energies.

    python -m recipes.probe OUT --config tasks='[DATA/probe/phones.tsv, DATA/probe/events.tsv]' \
        features='[{name: spear, kind: model, checkpoint: RUN}, {name: whisper, kind: teacher}]'

What a task asks and how is its kind (docs/probes.md). A model is always accompanied by the same architecture with fresh
weights and by log-mel energies. Results lie in OUT/probe.json, OUT/probe.tsv and OUT/probe.png; one file per task and
source in OUT/results lets a second run go on.
"""
