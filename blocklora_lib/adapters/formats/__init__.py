"""Adapter files of other libraries: PEFT's LoRA checkpoints, written and read.

Knows the files, settings and kinds of adapters, and never imports peft.
"""
