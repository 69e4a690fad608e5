"""Methods on image files, and adapters, on a GPU that is not there (see fake_cuda.py): a CPU's
numbers.
"""

from __future__ import annotations

from typing import get_args

import numpy as np
import pytest
import torch
from conftest import mostly_rare
from fake_cuda import CudaTensor
from PIL import Image
from torch import nn

from blocklora_lib.adapters.attach import attach_linear
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.clip.backbone import BackboneSpec, load_backbone
from blocklora_lib.core.seeding import generator
from blocklora_lib.data.image_files import ImageFiles
from blocklora_lib.learning.contract import Context
from blocklora_lib.learning.feature_cache import Source
from blocklora_lib.learning.spec import TrainingSpec
from blocklora_lib.methods import get_method, method_names

NAMES = ["cat", "dog"]
PROMPTS = [f"a photo of a {name}." for name in NAMES]


pytestmark = pytest.mark.usefixtures("gpu")


@pytest.fixture
def files(tmp_path):
    random = np.random.default_rng(1)
    paths = [tmp_path / f"{i}.png" for i in range(4)]
    for path in paths:
        Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return ImageFiles(paths)


COMMON = {  # one of each kind; the others differ in a line or two
    *("zero_shot", "linear_probe", "tip_adapter_f", "proker", "lora", "block_lora", "dora"),
    *("coop", "cocoop", "promptsrc", "two_stage"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", mostly_rare(method_names(), COMMON))
def test_it_fits_and_scores(name, files, tiny_clip):
    method = get_method(name)

    def scores(device):
        backbone = load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), device)
        training = TrainingSpec(
            steps_per_shot=1, min_steps=2, max_steps=2, batch_size=3, augment="light"
        )
        tokens, labels = backbone.tokenize(PROMPTS), torch.tensor([0, 1, 0, 1])
        seen = (backbone.resize(files), labels, training) if method.trains else (None, None, None)
        # What is drawn for dropout is another thing on a GPU. Were the context the prompts' own
        # words, ProGrad would project on a gradient that is zero but for rounding.
        few = {"dropout": 0.0, "epochs": 2, "steps": 2, "iterations": 3, "context": "an image of"}
        known = method.Settings.model_fields
        given = {key: value for key, value in few.items() if key in known}
        for key in given:  # as many as there are for other numbers of shots
            if isinstance(known[key].default, tuple):
                given[key] = (given[key],) * len(known[key].default)
        settings = method.Settings.model_validate(given)
        chosen_by = Source(lambda: files), labels
        predictor = method(settings).fit(
            Context(backbone, tokens, *seen, 2, 1, validation=chosen_by, names=NAMES)
        )
        own = getattr(predictor, "prompts", None)  # a method with texts of its own
        tokens = tokens if own is None else backbone.tokenize(own(NAMES))
        with torch.inference_mode(), predictor.inference():
            found = predictor.logits(backbone.preprocess(files), predictor.classifier(tokens))
        predictor.close()
        return found

    there = scores("cuda")
    assert isinstance(there, CudaTensor)
    # float32 through two layers and two steps of AdamW, which divides by small gradients; scores up
    # to 100
    torch.testing.assert_close(there.cpu(), scores("cpu"), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("reading", get_args(AdapterConfig.model_fields["reading"].annotation))
@pytest.mark.parametrize("kind", get_args(AdapterConfig.model_fields["kind"].annotation))
def test_adapters_on_linear_layers(kind, reading):
    of_blocks = kind not in ("lora", "dora", "pissa", "vera")
    cut = {"n_blocks": 2, "reading": reading} if of_blocks else {}
    if kind == "collapsed" and reading == "input":
        cut["n_blocks"] = 1  # it has one B already
    config = AdapterConfig(kind=kind, rank=2, dropout=0.0, **cut)

    def run(device):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(6, 8), nn.GELU(), nn.Linear(8, 4)).to(device)
        adapters = attach_linear(model, "*", config, generator(1, "adapter"))
        with torch.no_grad():
            for adapter in adapters.adapters.values():
                last = [p for p in adapter.parameters() if p.requires_grad][-1]
                last.copy_(torch.empty(last.shape).normal_(generator=generator(1, "last")))
        x = torch.randn(3, 6, generator=generator(1, "x")).to(device)
        found = [model(x)]
        found[0].square().sum().backward()
        found += [p.grad for p in adapters.parameters() if p.requires_grad]
        with torch.no_grad():
            found.append(adapters.merge().model(x))
            found.append(adapters.unmerge().model(x))
            adapters.merge_and_unload()
            found.append(model(x))
        return found

    for here, there in zip(run("cpu"), run("cuda"), strict=True):
        assert isinstance(there, CudaTensor)
        torch.testing.assert_close(there.detach().cpu(), here.detach(), rtol=1e-5, atol=1e-5)
