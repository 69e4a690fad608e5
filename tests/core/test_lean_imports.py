"""What a run imports: no library that it does not use, and each of them once something needs it."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import importlib, sys
import blocklora_lib.runs.execute
from blocklora_lib.methods import get_method, method_names
import torch, torchvision, open_clip

def trained(kind, **settings):
    weight = torch.nn.Parameter(torch.linspace(-1, 1, 7))
    optimizer = kind([weight], lr=0.1, **settings)
    for _ in range(3):
        optimizer.zero_grad()
        weight.cos().sum().backward()
        optimizer.step()
    assert weight.requires_grad and torch.is_grad_enabled()
    return weight.tolist()

USED = {"SGD": {"momentum": 0.9}, "Adam": {"weight_decay": 0.1}, "AdamW": {"fused": True}}
lean = {name: trained(getattr(torch.optim, name), **settings) for name, settings in USED.items()}
modules = [get_method(name) for name in method_names()]
found = {"transformers", "timm", "sympy", "torch._dynamo"} & sys.modules.keys()
assert not found, found

# what was left out is there for whoever needs it
from open_clip.model import CustomTextCLIP
from open_clip.hf_model import HFTextEncoder
from transformers import BertConfig
small = BertConfig(vocab_size=9, hidden_size=8, num_hidden_layers=1, num_attention_heads=1,
                   intermediate_size=8)
text = HFTextEncoder("bert", output_dim=4, config=small, proj_type="linear")
assert text(torch.tensor([[1, 2, 3]])).shape == (1, 4)
from open_clip.timm_model import TimmModel
tower = TimmModel("resnet10t", embed_dim=4, image_size=32).eval()
assert tower(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
boxes = [torch.tensor([[0.0, 0.0, 4.0, 4.0]])]
assert torchvision.ops.roi_align(torch.ones(1, 1, 8, 8), boxes, 2).eq(1).all()
torchvision.ops.roi_align.__globals__["is_compile_supported"]("cpu")
assert torch.compiler.is_compiling() is False and "torch._dynamo" in sys.modules

# torch's own steps, anew from their files: the same bits
for name, settings in USED.items():
    module = importlib.reload(importlib.import_module(f"torch.optim.{name.lower()}"))
    assert trained(getattr(module, name), **settings) == lean[name], name
"""


@pytest.mark.slow
def test_a_run_imports_what_it_uses_and_what_it_does_not_use_can_still_be_had():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
