"""The method: LoRA, Block-LoRA and their kin, on any model of PyTorch's.

Read config, updates, attention, attach; then sites and fitting (where they go), dropout and
files. Knows core and layers; of models it knows torch.nn alone, never CLIP.
"""
