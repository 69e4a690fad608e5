"""LoRA's relatives, which it is compared with: DoRA, PiSSA and VeRA, a kind each.

Know what an adapter is and its settings, and nothing of Block-LoRA.
"""
