"""Steps that train tokens or norms against torch's FLOP counter, exactly."""

from __future__ import annotations

import pytest
import torch

from blocklora_lib.clip.architectures import clip_architecture
from blocklora_lib.clip.learnt import Learnt
from blocklora_lib.clip.towers import TextTower
from blocklora_lib.costs.prompts import forward_work, norms_work, prompt_work
from blocklora_lib.costs.step import Work, whole_work
from blocklora_lib.measure.counted import build_clip, count_multiply_adds, tower_call

M, REST, CLASSES = 3, 4, 5


@pytest.mark.slow
@pytest.mark.parametrize("name", ["PocketCLIP", "ViT-B-16"])
def test_towers_whose_norms_are_trained_cost_what_torch_counts(name):
    architecture, model = clip_architecture(name), build_clip(name)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".resblocks." in f".{name}" and ".ln_" in name)
    for tower, tokens in ((architecture.vision, None), (architecture.text, 9)):
        counted = count_multiply_adds(tower_call(model, tower.kind, 2, tokens))
        assert Work(*counted) == whole_work(tower, 2, tokens)


def prompts(model):
    """Token ids of five classes that begin alike, and differ in the token after the learnt ones."""
    tokens = torch.zeros(CLASSES, model.context_length, dtype=torch.int64)
    tokens[:, : M + REST] = 1
    tokens[:, 1 + M] = torch.arange(CLASSES) + 2
    tokens[:, M + REST] = model.vocab_size - 1
    return tokens


@pytest.mark.parametrize("sets", [0, 2])  # of own prompts: one an image
@pytest.mark.parametrize("depth", [1, 2])
def test_prompts_behind_learnt_tokens_cost_what_torch_counts(sets, depth):
    # in float32 products with frozen weights go past the counter
    architecture, model = clip_architecture("PocketCLIP"), build_clip("PocketCLIP", "cpu").double()
    shape = (*([sets] if sets else []), M, architecture.text.width)
    parts = [torch.ones(shape, dtype=torch.float64, requires_grad=True) for _ in range(depth)]
    tower = TextTower(model)
    packed = tower.pack(prompts(model), share_prefix=True)
    counted = count_multiply_adds(lambda: tower.encode(packed, learnt=Learnt(tuple(parts))))
    once = whole_work(architecture.text, CLASSES, 1 + M + REST, 1 + M)
    assert Work(*counted) == Work(once.forward * max(sets, 1), once.backward * max(sets, 1))


def test_a_step_is_its_towers_and_its_logits():
    """Of ViT-B/16 at 100 classes, 32 images: what each kind of method adds to CoOp."""
    size = clip_architecture("ViT-B-16")
    coop = prompt_work(size, 32, 100, 16, 5)
    image = forward_work(size.vision, 32).forward
    text = whole_work(size.text, 100, 22, 17)
    logits = 32 * 100 * 512
    assert coop == Work(image + text.forward + logits, text.backward + logits)
    assert prompt_work(size, 32, 100, 16, 5, backwards=2).backward == 2 * coop.backward
    plain = prompt_work(size, 32, 100, 16, 5, plain_images=True)
    assert plain == Work(coop.forward + image, coop.backward)
    own = prompt_work(size, 32, 100, 16, 5, own_prompts=True)
    assert own == Work(coop.forward + 31 * text.forward, coop.backward + 31 * text.backward)
    both = prompt_work(size, 32, 100, 16, 5, image_tokens=True)
    assert both.forward == coop.forward
    assert both.backward == coop.backward + logits + whole_work(size.vision, 32).backward
    norms = norms_work(size, 32, 100, 10)
    assert norms.forward == image + whole_work(size.text, 100, 10).forward + logits
