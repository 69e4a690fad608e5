"""Data sets: from a manifest, a folder and a seed to images, labels and few-shot draws.

Read manifest, layouts, dataset, sampling, draw. Knows core. Nothing here knows a model.
"""

from ..core.lean_imports import install

install()
