"""The frozen model: CLIP's towers by open_clip, run fast and exactly.

Read backbone, towers, packing, untouched. Knows core, layers, adapters, data and weights.
"""

from ..core.lean_imports import install

install()
