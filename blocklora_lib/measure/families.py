"""The families of models that open_clip lists: the smallest config of each, cut down further.

Two layers of width 64, random weights in float64: what is asked of them is structure, which size
does not change. No network: text towers that open_clip takes from a hub are built by a config
written here.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

from torch import nn

from ..core.seeding import seeded_torch

WIDTH, LAYERS, WORDS, TOKENS = 64, 2, 64, 8
SMALL_TRUNK = dict(embed_dim=WIDTH, depth=LAYERS, num_heads=2)  # of timm's transformers
SMALL_TEXT = dict(width=WIDTH, heads=2, layers=LAYERS, vocab_size=WORDS, context_length=TOKENS)
SMALL_VISION = dict(width=WIDTH, head_width=32, layers=LAYERS, patch_size=32, image_size=64)
BERT = dict(hidden_size=WIDTH, num_hidden_layers=LAYERS, num_attention_heads=2)
BERT |= dict(intermediate_size=WIDTH, max_position_embeddings=32)
M2M = dict(d_model=WIDTH, encoder_layers=LAYERS, encoder_attention_heads=2, encoder_ffn_dim=WIDTH)
M2M |= dict(decoder_layers=1, decoder_attention_heads=2, decoder_ffn_dim=WIDTH)


@dataclass(frozen=True)
class Family:
    """A family, open_clip's smallest config of it, and what is cut down."""

    name: str
    config: str
    size: int = 64  # side of an image
    trunk: Mapping[str, Any] = field(default_factory=dict)  # settings of timm's model
    vision: Mapping[str, Any] = field(default_factory=dict)  # of open_clip's image tower
    text: Mapping[str, Any] = field(default_factory=dict)  # of a text tower of transformers

    def build(self) -> nn.Module:
        """Return the model, the same random weights always."""
        import open_clip
        import timm
        from open_clip.coca_model import CoCa
        from open_clip.model import CLIP, CustomTextCLIP

        config: dict[str, Any] = open_clip.get_model_config(self.config)
        config["embed_dim"] = WIDTH
        custom = config.pop("custom_text", False)
        vision = config["vision_cfg"]
        trunk = "timm_model_name" in {**vision, **self.vision}
        vision |= {} if trunk else SMALL_VISION
        vision |= dict(image_size=self.size, **self.vision)
        kind: Any = CustomTextCLIP if custom or self.text else CLIP
        if "multimodal_cfg" in config:
            kind, heads = CoCa, dict(attn_pooler_heads=2)
            vision |= heads
            config["multimodal_cfg"] |= SMALL_TEXT | heads
        create = partial(timm.create_model, **self.trunk)
        with hub(self.text) as folder, patch.object(timm, "create_model", create):
            if self.text:
                config["text_cfg"] |= dict(hf_model_name=folder, hf_model_pretrained=False)
            else:
                config["text_cfg"] |= SMALL_TEXT
            with seeded_torch(0, f"architectures/{self.config}"):
                model = kind(**config)
                for name, parameter in model.named_parameters():
                    if "gamma" in name:  # a start near zero would hide a layer
                        nn.init.constant_(parameter, 0.5)
        return model.double().eval()


FAMILIES = (
    Family("ViT", "ViT-S-32"),
    Family("ResNet", "RN50", vision=dict(layers=(1, 1, 1, 1), width=16)),
    Family("ConvNeXt", "convnext_tiny", trunk=dict(depths=(1, 1, 1, 1), dims=(16, 32, 64, 128))),
    Family("SigLIP", "ViT-B-16-SigLIP", trunk=SMALL_TRUNK | dict(img_size=64)),
    Family("SigLIP 2", "ViT-B-32-SigLIP2-256", trunk=SMALL_TRUNK | dict(img_size=64)),
    Family("CoCa", "coca_ViT-B-32"),
    Family("EVA01", "EVA01-g-14", 56, trunk=SMALL_TRUNK | dict(img_size=56)),
    Family("EVA02", "EVA02-B-16", trunk=SMALL_TRUNK | dict(img_size=64)),
    Family("PE-Core", "PE-Core-T-16-384", trunk=SMALL_TRUNK | dict(img_size=64)),
    Family("MobileCLIP", "MobileCLIP-B", trunk=dict(depth=LAYERS, img_size=64)),
    Family(
        "MobileCLIP 2",
        "MobileCLIP2-S0",
        trunk=dict(layers=(1, 1, 1, 1), embed_dims=(16, 32, 64, 128)),
    ),
    Family("NLLB text", "nllb-clip-base", text=M2M | dict(model_type="m2m_100")),
    Family(
        "xlm-roberta text", "xlm-roberta-base-ViT-B-32", text=BERT | dict(model_type="xlm-roberta")
    ),
    Family("RoBERTa text", "roberta-ViT-B-32", text=BERT | dict(model_type="roberta")),
    Family(
        "mT5 text",
        "mt5-base-ViT-B-32",
        text=dict(
            model_type="mt5", d_model=WIDTH, num_layers=LAYERS, num_heads=2, d_kv=32, d_ff=64
        ),
    ),
    Family(
        "timm Swin",
        "swin_base_patch4_window7_224",
        56,
        trunk=dict(embed_dim=16, depths=(1, 1), num_heads=(2, 2), img_size=56),
    ),
    Family("timm ViTamin", "ViTamin-S", 224, trunk=dict(depth=LAYERS)),
    Family(
        "timm relative positions",
        "vit_relpos_medium_patch16_cls_224",
        trunk=SMALL_TRUNK | dict(img_size=64),
    ),
    Family(
        "timm BEiT",  # no config of open_clip's: its trunk in that of another
        "vit_medium_patch16_gap_256",
        trunk=SMALL_TRUNK | dict(img_size=64),
        vision=dict(timm_model_name="beit_base_patch16_224"),
    ),
)


@contextmanager
def hub(config: Mapping[str, Any]) -> Iterator[str]:
    """A folder that stands for a model of the hub: its config, no weights."""
    with TemporaryDirectory() as folder:
        text = json.dumps({**config, "vocab_size": WORDS, "pad_token_id": 1})
        Path(folder, "config.json").write_text(text, encoding="utf-8")
        yield folder
