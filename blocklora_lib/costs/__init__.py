"""What adapters and steps cost by count, as closed forms: parameters, multiply-adds, memory.

Knows core, adapters' settings and the sizes of architectures. No torch.
"""
