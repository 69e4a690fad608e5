"""What the library is compared with, written without it: CLIP-LoRA's released code, and peft.

Knows no room of ours.
"""
