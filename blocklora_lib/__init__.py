"""Block-LoRA for CLIP: adapters, few-shot training, run records and the reports made of them."""

__version__ = "0.1.0"
