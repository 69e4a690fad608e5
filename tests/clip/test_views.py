"""What a backbone sees of an image: open_clip's evaluation transform, for every kind of model."""

from __future__ import annotations

import copy

import numpy as np
import open_clip
import pytest
import torch
from open_clip.pretrained import get_pretrained_cfg
from open_clip.transform import PreprocessCfg, image_transform_v2, merge_preprocess_dict
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

from blocklora_lib.clip.backbone import Backbone, BackboneSpec, load_backbone
from blocklora_lib.data.image_files import ImageFiles, crop_box
from blocklora_lib.data.views import View

SIDE = 32
CONFIGS = {
    "CLIP": get_pretrained_cfg("ViT-B-16", "openai"),
    "SigLIP": get_pretrained_cfg("ViT-B-16-SigLIP", "webli"),
    "CLIPA": get_pretrained_cfg("ViT-L-14-CLIPA", "datacomp1b"),
    "MobileCLIP": get_pretrained_cfg("MobileCLIP-S1", "datacompdr"),
    "MobileCLIP2": get_pretrained_cfg("MobileCLIP2-S3", "dfndr2b"),
    "PE": get_pretrained_cfg("PE-Core-B-16", "meta"),
    "DFN": get_pretrained_cfg("ViT-H-14-quickgelu", "dfn5b"),
    "LAION": get_pretrained_cfg("ViT-L-14", "laion2b_s32b_b82k"),
    "longest": dict(resize_mode="longest", fill_color=200, interpolation="bilinear"),
    "wide": dict(size=(24, 40)),
    "wide, longest": dict(size=(24, 40), resize_mode="longest"),
    "wide, squashed": dict(size=(24, 40), resize_mode="squash", interpolation="bilinear"),
    "one number for all channels": dict(mean=0.5, std=0.25),
    "next to nothing": dict(mean=None, std=None, interpolation=None),
}
IMAGES = {
    "wide": (50, 120, 3),
    "tall": (120, 31, 3),
    "very tall": (300, 9, 3),
    "tiny": (3, 5, 3),
    "one pixel": (1, 1, 3),
    "exact": (SIDE, SIDE, 3),
    "half exact": (SIDE, 77, 3),
    "gray": (45, 60),
}


def config_of(name: str) -> dict:
    return merge_preprocess_dict(PreprocessCfg(size=SIDE), CONFIGS[name])


@pytest.fixture(scope="module")
def tiny(tiny_clip):
    return load_backbone(BackboneSpec(name=tiny_clip, pretrained="none"), "cpu")


def seen_as(tiny: Backbone, config: dict) -> Backbone:
    """The tiny model, said to want this preprocessing."""
    model = copy.deepcopy(tiny.model)
    model.visual.preprocess_cfg = config
    return Backbone(model, None, tiny.spec)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    random, paths = np.random.default_rng(0), {}
    for name, shape in IMAGES.items():
        paths[name] = tmp_path_factory.mktemp("photos") / f"{name}.png"
        Image.fromarray(random.integers(0, 256, shape, dtype=np.uint8)).save(paths[name])
    return paths


@pytest.mark.parametrize("name", CONFIGS)
def test_files_are_seen_as_by_open_clips_own_transform(tiny, photos, name):
    config, files = config_of(name), list(photos.values())
    theirs = image_transform_v2(PreprocessCfg(**config), is_train=False)
    backbone = seen_as(tiny, config)
    ours = backbone.preprocess(ImageFiles(files))
    assert backbone.view.size == ((24, 40) if name.startswith("wide") else (SIDE, SIDE))
    for path, view in zip(files, ours, strict=True):
        # the normalisation is one product and one sum here: two roundings
        with Image.open(path) as image:
            torch.testing.assert_close(view, theirs(image), rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_seen_as_by_open_clips_own_transform(tiny, name):
    """A bundle's pixels keep their fractions on the way.

    PIL rounds after each of its two passes, by half a level each, which bicubic's weights enlarge a
    little. The pictures are smooth: PIL also clips between.
    """
    config = config_of(name)
    theirs = image_transform_v2(PreprocessCfg(**config), is_train=False)
    backbone = seen_as(tiny, config)
    std = backbone.image_std
    for height, width in ((50, 120), (90, 20), (3, 5), (SIDE, SIDE), (24, 40), (SIDE, 77)):
        y, x = torch.linspace(0, 3, height)[:, None], torch.linspace(0, 5, width)
        waves = torch.stack(
            [torch.stack([(x + i + c).sin() * (y - i + c).cos() for c in range(3)]) for i in (1, 2)]
        )
        pixels = (128 + 100 * waves).to(torch.uint8)
        ours = backbone.preprocess(pixels)
        for one, view in zip(pixels, ours, strict=True):
            expected = theirs(TF.to_pil_image(one))
            levels = ((view - expected) * std * 255).abs()
            assert float(levels.max()) < 2
            assert float(levels.mean()) < 0.6


def test_a_view_leaves_the_callers_pixels_alone(tiny):
    pixels = torch.full((1, 3, SIDE, 2 * SIDE), 300.0)  # out of range, and only cropped
    assert float(tiny.resize(pixels).max()) == 255
    assert float(pixels.max()) == 300


@pytest.mark.parametrize("name", ["CLIP", "SigLIP", "CLIPA", "wide"])
def test_training_views_are_crops_by_the_backbones_interpolation(tiny, photos, name):
    config, files = config_of(name), list(photos.values())
    backbone = seen_as(tiny, config)
    views = backbone.resize(ImageFiles(files)).training_views(
        "clip_lora", torch.Generator().manual_seed(3)
    )
    draw = torch.Generator().manual_seed(3)
    bilinear = config["interpolation"] == "bilinear"
    how = InterpolationMode.BILINEAR if bilinear else InterpolationMode.BICUBIC
    for path, view in zip(files, views, strict=True):
        image = Image.open(path).convert("RGB")
        box = crop_box(image.height, image.width, 0.08, draw)
        cut = TF.resized_crop(image, *box, list(backbone.view.size), how)
        if torch.rand(1, generator=draw).item() < 0.5:
            cut = TF.hflip(cut)
        assert torch.equal(view, TF.pil_to_tensor(cut))
    plain = backbone.resize(ImageFiles(files))
    assert torch.equal(plain.training_views("none", draw), plain.evaluation_views())


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (dict(resize_mode="stretch"), "resize_mode='stretch'; known: shortest, longest, squash"),
        (dict(interpolation="lanczos"), "interpolation='lanczos'; known: bicubic, bilinear"),
    ],
)
def test_an_unknown_way_of_looking_is_refused(config, says):
    with pytest.raises(ValueError, match=says):
        View.from_config(config)


def test_an_image_that_has_no_view_is_named(tmp_path):
    path = tmp_path / "line.png"
    Image.new("RGB", (900, 1)).save(path)
    with pytest.raises(
        ValueError, match=r"image .*line\.png of 900 x 1 pixels cannot be viewed at 32 x 32"
    ):
        ImageFiles([path]).at(View((32, 32), "longest"), "cpu").evaluation_views()


def test_every_tag_of_open_clip_has_a_view_that_is_known_here():
    for model, tag in open_clip.list_pretrained():
        View.from_config(get_pretrained_cfg(model, tag))
