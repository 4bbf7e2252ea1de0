"""Corpora: manifests, audio, code stores, batches and the training reader.

Import from the modules: those that only read manifests and audio do not load torch.
"""
