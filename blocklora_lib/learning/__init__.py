"""How a method learns from few images and is judged: the training loop and the one evaluation
rule.

Read spec, method, contract, loop, evaluation; adapter_fit is what all adapter methods do. Knows
clip and all below.
"""
