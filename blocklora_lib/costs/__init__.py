"""What adapters and steps cost by count, as closed forms: parameters, multiply-adds, memory.

`ways.py` names the ways to compute, for closed forms, timings and figures alike.

Knows core, settings of adapters and the sizes of architectures in clip. No torch.
"""
