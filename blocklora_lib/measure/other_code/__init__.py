"""What the library is compared with, written once more without it: CLIP-LoRA's released code, and
peft.

Knows no room of ours.
"""
