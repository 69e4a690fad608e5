"""The method: LoRA, Block-LoRA and their kin, on any model of PyTorch's.

Read config, adapter, updates, attention, attach; then sites and fitting (where they go) and
files; relatives are what it is compared with. Knows core and layers; of models it knows torch.nn
alone, never CLIP.
"""
