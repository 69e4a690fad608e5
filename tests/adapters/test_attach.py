"""Adapters on whole models, open_clip's, torchvision's, PyTorch's: attach, merge, save, load."""

from __future__ import annotations

import json
import re
from itertools import pairwise

import open_clip
import pytest
import torch
from adapted_layers import seeded
from hypothesis import given, settings
from hypothesis import strategies as st
from open_clip.model import CLIP, CustomTextCLIP
from safetensors import safe_open
from safetensors.torch import save_file
from timm.layers.attention import Attention as TimmAttention
from torch import nn
from torchvision.models import VisionTransformer

from blocklora_lib.adapters.adapter import Adapter
from blocklora_lib.adapters.attach import AdapterSet, attach, attach_linear
from blocklora_lib.adapters.attention import AdaptedMultiheadAttention
from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.adapters.relatives.vera import VeRA
from blocklora_lib.core.schema import AdapterError

VISION = dict(image_size=32, patch_size=16, width=32, layers=3, head_width=8)
TEXT = dict(context_length=8, vocab_size=50, width=24, heads=3, layers=2)
CONFIG = AdapterConfig(kind="block_lora", rank=2, n_blocks=2, dropout=0.0)


def clip(kind: type = CLIP, **vision) -> nn.Module:
    torch.manual_seed(0)
    return kind(embed_dim=16, vision_cfg={**VISION, **vision}, text_cfg=TEXT).eval()


def torchvision_vit() -> nn.Module:
    torch.manual_seed(0)
    model = VisionTransformer(
        32, 16, num_layers=2, num_heads=4, hidden_dim=32, mlp_dim=64, num_classes=5
    )
    # torchvision starts the head at zero: nothing would be seen
    nn.init.normal_(model.heads.head.weight)
    return model.eval()


def clip_output(model: nn.Module) -> torch.Tensor:
    images = torch.randn(3, 3, 32, 32, generator=seeded(1)).to(next(model.parameters()).dtype)
    tokens = torch.randint(1, 50, (4, 8), generator=seeded(2))
    return torch.cat([model.encode_image(images), model.encode_text(tokens)])


def vit_output(model: nn.Module) -> torch.Tensor:
    return model(torch.randn(3, 3, 32, 32, generator=seeded(1)))


def randomize(adapters: AdapterSet, seed: int = 3, size: float = 0.3) -> AdapterSet:
    generator = seeded(seed)
    with torch.no_grad():
        for adapter in adapters.adapters.values():
            up = adapter.b if isinstance(adapter, VeRA) else adapter.B
            up.normal_(0, size, generator=generator)
    return adapters


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


def snapshot(model: nn.Module) -> list:
    """What detach must give back: classes, parameters, bits, flags, buffers, hooks, modes."""
    return [
        [
            (name, type(m), m.training, len(m._forward_pre_hooks), sorted(vars(m)))
            for name, m in model.named_modules()
        ],
        [(name, id(p), p.requires_grad, sorted(vars(p))) for name, p in model.named_parameters()],
        [(name, t.clone()) for name, t in model.state_dict().items()],
    ]


def assert_same(before: list, after: list) -> None:
    assert before[:2] == after[:2]
    for (name, a), (other, b) in zip(before[2], after[2], strict=True):
        assert name == other
        assert torch.equal(a, b), name


MODELS = {
    "clip": (clip, clip_output, 5),
    "custom_text_clip": (lambda: clip(CustomTextCLIP), clip_output, 5),
    "torchvision": (torchvision_vit, vit_output, 2),
}
KINDS = [
    dict(kind="lora", rank=2),
    dict(kind="block_lora", rank=4, n_blocks=2),
    dict(kind="block_lora", rank=2, n_blocks=4, reading="block_rank"),
    dict(kind="block_lora", rank=2, n_blocks=4, reading="input"),
    dict(kind="frozen_a", rank=2, n_blocks=2),
    dict(kind="collapsed", rank=4, n_blocks=2),
    dict(kind="dora", rank=2),
    dict(kind="pissa", rank=2),
    dict(kind="vera", rank=8),
]


@pytest.mark.parametrize("which", MODELS)
@pytest.mark.parametrize("kind", KINDS, ids=lambda k: "-".join(map(str, k.values())))
def test_the_life_of_adapters(which, kind, tmp_path):
    build, output, depth = MODELS[which]
    model = build()
    for i, p in enumerate(model.parameters()):
        p.requires_grad_(i % 3 > 0)  # flags to give back
    before, base = snapshot(model), output(model)
    config = AdapterConfig(targets=("q", "k", "v", "o"), dropout=0.25, **kind)
    adapters = attach(model, config, seeded())
    assert len(adapters.adapters) == 4 * depth
    assert relative(output(model), base) <= 1e-6  # B is zero

    trained = {id(p) for p in adapters.parameters()}
    assert {id(p) for p in model.parameters() if p.requires_grad} == trained
    model.train()
    output(model).square().sum().backward()
    for name, adapter in adapters.adapters.items():
        up = adapter.b if isinstance(adapter, VeRA) else adapter.B
        assert up.grad.abs().max() > 0, name  # at every depth of every tower
    randomize(adapters).model.zero_grad()
    output(model).square().sum().backward()
    for name, adapter in adapters.adapters.items():
        for key, p in adapter.named_parameters():
            assert p.grad.abs().max() > 0, (name, key)

    model.eval()
    adapted = output(model)
    assert relative(adapted, base) > 1e-2
    weights = [p.detach().clone() for p in model.parameters()]
    adapters.merge()
    assert relative(output(model), adapted) < 1e-5  # float32, two orders of summation
    adapters.save(tmp_path / "merged.safetensors")
    adapters.unmerge()
    assert all(torch.equal(a, b) for a, b in zip(weights, model.parameters(), strict=True))
    adapters.save(tmp_path / "a.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (
        tmp_path / "merged.safetensors"
    ).read_bytes()

    adapters.merge().detach()
    assert_same(before, snapshot(model))
    assert torch.equal(output(model), base)
    loaded = AdapterSet.load(tmp_path / "a.safetensors", model)
    assert torch.equal(output(model), adapted)
    loaded.detach()
    assert_same(before, snapshot(model))


def independent_attention(mha: nn.MultiheadAttention, deltas: dict, q, k, v, **kwargs):
    """PyTorch's own function on weights to which ΔW was added by hand."""
    e = mha.embed_dim
    packed = mha.in_proj_weight is not None
    weights = (
        mha.in_proj_weight.split(e)
        if packed
        else (mha.q_proj_weight, mha.k_proj_weight, mha.v_proj_weight)
    )
    q_w, k_w, v_w = (w + deltas[t] for w, t in zip(weights, "qkv", strict=True))
    return nn.functional.multi_head_attention_forward(
        q, k, v, e, mha.num_heads, None, mha.in_proj_bias, None, None, False, 0.0,
        mha.out_proj.weight + deltas["o"], mha.out_proj.bias, training=False,
        use_separate_proj_weight=True, q_proj_weight=q_w, k_proj_weight=k_w, v_proj_weight=v_w,
        **kwargs,
    )  # fmt: skip


@pytest.mark.slow
@given(
    batch_first=st.booleans(),
    bias=st.booleans(),
    dims=st.sampled_from([(None, None), (6, 10)]),
    cross=st.booleans(),
    batched=st.booleans(),
    mask=st.sampled_from([None, "bool", "float", "per_head", "causal"]),
    padding=st.sampled_from([None, "bool", "float"]),
    need_weights=st.booleans(),
    average=st.booleans(),
    kind=st.sampled_from(KINDS),
    some=st.sampled_from(["qkvo", "qv", "k", "o", "vo"]),
)
@settings(max_examples=150, deadline=None, derandomize=True)
def test_attention_is_pytorchs_on_the_summed_weights(
    batch_first, bias, dims, cross, batched, mask, padding, need_weights, average, kind, some
):
    torch.manual_seed(0)
    n, length, keys = 2, 3, 5 if cross or dims[0] else 3
    if dims[0] and kind.get("reading") == "input":
        kind = {**kind, "n_blocks": 2}  # 6 and 10 are no multiples of 4
    mha = nn.MultiheadAttention(
        8, 2, bias=bias, kdim=dims[0], vdim=dims[1], batch_first=batch_first
    )
    mha = mha.double().eval()
    q = torch.randn(length, n, 8, dtype=torch.float64)
    k = torch.randn(keys, n, dims[0] or 8, dtype=torch.float64) if keys == 5 else q
    v = torch.randn(keys, n, dims[1] or 8, dtype=torch.float64) if keys == 5 else q
    dtypes = {"bool": torch.bool, "float": torch.float64}
    options = dict(need_weights=need_weights, average_attn_weights=average)
    if mask == "causal" and keys == length:
        options |= dict(attn_mask=torch.ones(length, keys).triu(1).bool(), is_causal=True)
    elif mask == "per_head":
        options |= dict(
            attn_mask=torch.randn((n if batched else 1) * 2, length, keys, dtype=torch.float64)
        )
    elif mask:
        options |= dict(
            attn_mask=(torch.ones(length, keys).triu(3) > 0).to(dtypes.get(mask, torch.bool))
        )
    if padding:
        pad = torch.zeros(n, keys, dtype=dtypes[padding])
        pad[1, -1] = 1
        options |= dict(key_padding_mask=pad if batched else pad[1])
    if padding and mask and options["attn_mask"].dtype != options["key_padding_mask"].dtype:
        options["attn_mask"] = options["attn_mask"].double() * -1e3
        options["key_padding_mask"] = options["key_padding_mask"].double() * -1e3
    if not batched:
        q, k, v = (x[:, 1] for x in (q, k, v)) if k is not q else [q[:, 1]] * 3

    adapters = attach(mha, AdapterConfig(dropout=0.0, targets=tuple(some), **kind), seeded())
    randomize(adapters.double())
    shapes = dict(q=(8, 8), k=(8, dims[0] or 8), v=(8, dims[1] or 8), o=(8, 8))
    deltas = {t: torch.zeros(shape, dtype=torch.float64) for t, shape in shapes.items()}
    e, weights = mha.embed_dim, dict(o=mha.out_proj.weight)
    if mha.in_proj_weight is not None:
        weights |= zip("qkv", mha.in_proj_weight.split(e), strict=True)
    else:
        weights |= {t: getattr(mha, f"{t}_proj_weight") for t in "qkv"}
    deltas |= {t: adapter.delta_on(weights[t]) for t, adapter in adapters.adapters.items()}
    expected, expected_weights = independent_attention(mha, deltas, q, k, v, **options)
    turn = batch_first and batched
    if turn:
        k, v = (q.transpose(0, 1),) * 2 if k is q else (k.transpose(0, 1), v.transpose(0, 1))
        q = k if keys == length else q.transpose(0, 1)
    for merged in (False, True):
        if merged:
            adapters.merge()
        found, weights = mha(q, k, v, **options)
        found = found.transpose(0, 1) if turn else found
        atol = 1e-12  # float64, sums of at most 40 terms
        torch.testing.assert_close(found, expected, rtol=0, atol=atol)
        assert (weights is None) == (not need_weights)
        if need_weights:
            torch.testing.assert_close(weights, expected_weights, rtol=0, atol=atol)


def test_attention_dropout_acts_in_training_only():
    mha = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)
    x = torch.randn(2, 6, 8)
    randomize(attach(mha, CONFIG, seeded()))
    for weights in (True, False):
        assert not torch.equal(
            mha(x, x, x, need_weights=weights)[0], mha(x, x, x, need_weights=weights)[0]
        )
    mha.eval()
    torch.testing.assert_close(mha(x, x, x)[0], mha(x, x, x, need_weights=False)[0])


@pytest.mark.parametrize("where", ["attention", "linear"])
@pytest.mark.parametrize("grad", [True, False])
def test_the_fused_encoder_kernel_does_not_pass_adapters_by(where, grad):
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True).eval()
    x, pad = torch.randn(3, 5, 8), torch.arange(5) >= torch.tensor([5, 4, 2])[:, None]
    before = snapshot(model)
    adapters = (
        attach(model, CONFIG, seeded())
        if where == "attention"
        else attach_linear(model, "*.linear1", CONFIG)
    )
    randomize(adapters)
    with torch.set_grad_enabled(grad):
        adapted = model(x, src_key_padding_mask=pad)[~pad]
        adapters.merge()
        merged = model(x, src_key_padding_mask=pad)[~pad]
        adapters.detach()
        base = model(x, src_key_padding_mask=pad)[~pad]
    assert relative(adapted, base) > 1e-2
    assert relative(merged, adapted) < 1e-5
    assert_same(before, snapshot(model))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_backbones(dtype):
    model = clip().to(dtype)
    base = clip_output(model)
    adapters = attach(model, CONFIG, seeded())
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    assert torch.equal(clip_output(model), base)
    clip_output(model).float().square().sum().backward()
    assert all(p.grad.dtype == torch.float32 for p in adapters.parameters())
    bits = [p.detach().clone() for p in model.parameters()]
    adapted = clip_output(randomize(adapters).model)
    merged = clip_output(adapters.merge().model)
    # W + ΔW is rounded to the backbone's precision: a relative 2^-9 (bf16), 2^-12 (fp16) a weight,
    # 5 layers
    assert relative(merged.float(), adapted.float()) < 10 * torch.finfo(dtype).eps
    adapters.unmerge()
    randomize(adapters, size=0.0)
    assert all(
        torch.equal(a, b) for a, b in zip(bits, model.parameters(), strict=True) if a.dtype == dtype
    )
    exact = [p.detach().clone() for p in randomize(adapters).parameters()]
    model.float().to(dtype)  # a later move of the backbone leaves the adapters' bits alone
    assert all(torch.equal(a, b) for a, b in zip(exact, adapters.parameters(), strict=True))


def test_open_clip_goes_on_working():
    model = clip()
    adapters = randomize(attach(model, CONFIG, seeded()))
    model.train()
    clip_output(model).square().sum().backward()
    plain = [p.grad.clone() for p in adapters.parameters()]
    model.set_grad_checkpointing(True)
    model.zero_grad()
    clip_output(model).square().sum().backward()
    for a, p in zip(plain, adapters.parameters(), strict=True):
        torch.testing.assert_close(a, p.grad)
    model.set_grad_checkpointing(False)
    assert model.transformer.get_cast_dtype() == torch.float32
    assert isinstance(model.visual.transformer.resblocks[0].attn, nn.MultiheadAttention)
    with torch.autocast("cpu", torch.bfloat16):
        assert clip_output(model.eval()).isfinite().all()
    open_clip.model.convert_weights_to_lp(model, torch.bfloat16)
    assert {p.dtype for p in adapters.parameters()} == {torch.float32}
    features = model.visual.forward_intermediates(torch.randn(1, 3, 32, 32).bfloat16())
    assert features["image_features"].isfinite().all()


def test_parameter_count_of_vit_b_16():
    with torch.device("meta"):
        model = CLIP(**open_clip.get_model_config("ViT-B-16-quickgelu"))
    # Σ d_in r/n + r d_out over q, k, v of 24 layers
    for n, count in {1: 184_320, 2: 138_240}.items():
        adapters = attach(model, AdapterConfig(kind="block_lora", rank=2, n_blocks=n), seeded())
        assert adapters.num_parameters() == count
        adapters.detach()


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (dict(layers=(0,)), ["visual.transformer.resblocks.0", "transformer.resblocks.0"]),
        (dict(layers=(-1,), towers=("vision",)), ["visual.transformer.resblocks.2"]),
        (
            dict(layers=(0, 1), towers=("text",)),
            ["transformer.resblocks.0", "transformer.resblocks.1"],
        ),
    ],
)
def test_layers_and_towers(settings, kept):
    adapters = attach(clip(), AdapterConfig(targets=("v",), **settings), seeded())
    assert list(adapters.adapters) == [f"{name}.attn.v" for name in kept]


def test_a_generator_decides_the_start():
    starts = [attach(clip(), CONFIG, seeded(seed)).state_dict() for seed in (4, 4, 5)]
    assert all(torch.equal(starts[0][k], starts[1][k]) for k in starts[0])
    assert not any(torch.equal(starts[0][k], starts[2][k]) for k in starts[0] if k.endswith("A_s"))
    different = [t for k, t in starts[0].items() if k.endswith("A_s") and t.shape[1] == 32]
    assert not any(torch.equal(a, b) for a, b in pairwise(different))


def test_pooling_heads_are_no_layers():
    model = clip(attentional_pool=True, attn_pooler_heads=4)
    adapters = attach(model, AdapterConfig(towers=("vision",)), seeded())
    assert len(adapters.adapters) == 3 * 3
    # by itself it is any attention, with kdim and vdim
    pooler = nn.Sequential(model.visual.attn_pool)
    model = adapters.detach()
    assert len(attach(pooler, CONFIG, seeded()).adapters) == 3


# linear layers


def test_linear_layers_by_name_glob_and_pattern():
    model, base = clip(), clip_output(clip())
    for names, count in [
        ("visual.transformer.resblocks.0.mlp.c_fc", 1),
        ("*.mlp.c_fc", 5),
        (["visual.*.c_proj", "visual.*.c_fc"], 6),
        (re.compile(r"resblocks\.1\.mlp"), 4),
    ]:
        adapters = attach_linear(model, names, CONFIG, seeded())
        assert len(adapters.adapters) == count
        assert relative(clip_output(model), base) <= 1e-6
        adapted = clip_output(randomize(adapters).model)
        assert relative(adapted, base) > 1e-2
        assert relative(clip_output(adapters.merge().model), adapted) < 1e-5
        adapters.detach()
        assert torch.equal(clip_output(model), base)


def test_linear_and_attention_adapters_on_one_model_in_any_order():
    model = clip()
    before, base = snapshot(model), clip_output(model)
    sets = [
        randomize(attach(model, CONFIG, seeded())),
        randomize(attach_linear(model, "*.c_fc", CONFIG, seeded(1))),
    ]
    assert sum(p.requires_grad for p in model.parameters()) == sum(
        len(list(s.parameters())) for s in sets
    )
    both = clip_output(model)
    sets[0].detach()
    assert not any(p.requires_grad for n, p in model.named_parameters() if ".adapters." not in n)
    assert relative(clip_output(model), both) > 1e-3
    sets[1].detach()
    assert_same(before, snapshot(model))
    assert torch.equal(clip_output(model), base)


# refusals: never a silent no-op


class OwnForward(nn.MultiheadAttention):
    def forward(self, *args, **kwargs):
        return super().forward(*args, **kwargs)


class OwnLinear(nn.Linear):
    def forward(self, x):
        return super().forward(x)


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    return model


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (
            lambda: attach(clip(), AdapterConfig(layers=(0, 7))),
            ["depth 7", "vision tower has 3 layers", "-3 to 2"],
        ),
        (
            lambda: attach(clip(), AdapterConfig(layers=(2,))),
            ["depth 2", "text tower has 2 layers"],
        ),
        (
            lambda: attach(torchvision_vit(), AdapterConfig(towers=("text",))),
            ["no text tower", "('vision',)"],
        ),
        (
            lambda: attach(nn.Sequential(nn.Linear(4, 4)), CONFIG),
            ["no attention module", "attach_linear"],
        ),
        (lambda: attach(nn.MultiheadAttention(8, 2, add_bias_kv=True), CONFIG), ["add_bias_kv"]),
        (
            lambda: attach(nn.MultiheadAttention(8, 2, add_zero_attn=True), CONFIG),
            ["add_zero_attn"],
        ),
        (lambda: attach(OwnForward(8, 2), CONFIG), ["OwnForward", "forward of its own"]),
        (lambda: attach_linear(OwnLinear(8, 2), "*", CONFIG), ["OwnLinear", "forward of its own"]),
        (
            lambda: attach_linear(clip(), "*.mlp.c_fcc", CONFIG),
            ["'*.mlp.c_fcc'", "near names", "mlp.c_fc"],
        ),
        (lambda: attach_linear(clip(), "*.ln_1", CONFIG), ["LayerNorm", "no nn.Linear"]),
        (
            lambda: attach_linear(clip(), "*.attn.out_proj", CONFIG),
            ["never calls it", "targets=('o',)"],
        ),
        (lambda: attach_linear(clip(), [], CONFIG), ["no name"]),
        (lambda: attach_linear(tied(), "0", CONFIG), ["0.weight", "shared"]),
        (
            lambda: attach(
                clip(), AdapterConfig(kind="block_lora", rank=2, n_blocks=5, reading="input")
            ),
            ["resblocks.0.attn.q", "d_in=32", "n_blocks=5"],
        ),
        (
            lambda: attach(clip(timm_model_name="convnext_atto", timm_pool="avg"), CONFIG),
            ["TimmModel", "no attention module", "attach_linear"],
        ),
        (
            lambda: attach(nn.ModuleDict({"pool": TimmAttention(8, 2)}), CONFIG),
            ["timm.layers.attention.Attention", "layers are pool.qkv, pool.proj;", "attach_linear"],
        ),
        (
            lambda: attach(
                clip(layers=(1, 1, 1, 1), width=8, head_width=8, patch_size=None), CONFIG
            ),
            ["ModifiedResNet", "attach_linear"],
        ),
        (
            lambda: attach_linear(
                clip(layers=(1, 1, 1, 1), width=8, head_width=8),
                "*.attnpool.*_proj",
                CONFIG.model_copy(update={"dropout": 0.25}),
            ),
            ["AttentionPool2d", "never calls it", "dropout=0"],
        ),
    ],
)
def test_refusals(call, words):
    with pytest.raises(AdapterError) as error:
        call()
    assert all(word in str(error.value) for word in words), str(error.value)


def test_a_refusal_leaves_the_model_alone():
    model = clip()
    before = snapshot(model)
    with pytest.raises(AdapterError):
        attach(
            model, AdapterConfig(kind="block_lora", rank=2, n_blocks=3, reading="input"), seeded()
        )
    assert_same(before, snapshot(model))


def test_attaching_twice_is_refused():
    model = clip()
    attach(model, CONFIG, seeded())
    with pytest.raises(AdapterError, match=r"resblocks\.0\.attn.*already.*detach"):
        attach(model, CONFIG, seeded())


# merge


def test_merged_twice_is_merged_once_and_training_is_refused():
    model = clip()
    adapters = randomize(attach(model, CONFIG, seeded())).merge()
    once = clip_output(model)
    assert torch.equal(clip_output(adapters.merge().model), once)
    model.train()
    with pytest.raises(AdapterError, match=r"unmerge\(\)"):
        clip_output(model)
    with torch.no_grad():
        assert relative(clip_output(model), once) < 1e-5  # PyTorch may fuse without gradients
    adapters.unmerge()
    clip_output(model).sum().backward()


def test_merge_runs_pytorchs_own_forward():
    model = clip()
    attention = model.visual.transformer.resblocks[0].attn
    adapters = attach(model, CONFIG, seeded())
    assert isinstance(attention, AdaptedMultiheadAttention)
    with torch.inference_mode():
        adapters.merge()
    names = {p.data_ptr() for p in model.parameters()}
    with torch.no_grad(), torch.profiler.profile() as profile:
        clip_output(model)
    # no update is added any more
    assert "aten::addmm_" not in {event.key for event in profile.key_averages()}
    assert len(names) == len(list(model.parameters()))
    adapters.unmerge()
    clip_output(model.train()).sum().backward()  # nothing of inference mode is left behind


@torch.no_grad()  # PyTorch picks its kernel by whether gradients are on
@pytest.mark.parametrize("merged_before", [False, True])
def test_merging_for_good_leaves_a_plain_model(merged_before, tmp_path):
    model, untouched = clip(), clip()
    adapters = randomize(attach(model, CONFIG, seeded()))
    if merged_before:
        adapters.merge()
    expected = clip_output(adapters.merge().model)
    assert adapters.merge_and_unload() is model
    assert torch.equal(clip_output(model), expected)
    names = {name: tensor.shape for name, tensor in untouched.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == names
    assert {type(m) for m in model.modules()} == {type(m) for m in untouched.modules()}
    with pytest.raises(AdapterError, match="detached"):
        adapters.merge()
    adapters.save(tmp_path / "a.safetensors")  # for another copy of the model
    AdapterSet.load(tmp_path / "a.safetensors", untouched).merge()
    assert torch.equal(clip_output(untouched), expected)


def test_detached_adapters_can_be_saved_but_not_merged(tmp_path):
    model = clip()
    adapters = randomize(attach(model, CONFIG, seeded()))
    expected = clip_output(model)
    adapters.detach()
    adapters.detach()
    with pytest.raises(AdapterError, match="detached"):
        adapters.merge()
    adapters.save(tmp_path / "a.safetensors")
    AdapterSet.load(tmp_path / "a.safetensors", model)
    assert torch.equal(clip_output(model), expected)


# files


def test_a_file_describes_itself(tmp_path):
    path = tmp_path / "a.safetensors"
    adapters = attach_linear(clip(), "visual.*.c_fc", CONFIG, seeded())
    randomize(adapters).save(path, extra={"dataset": "flags", "seed": "1"})
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        assert "visual.transformer.resblocks.0.mlp.c_fc.weight.A_s" in file.keys()  # noqa: SIM118
    assert metadata["format"] == "blocklora-adapter"
    assert metadata["format_version"] == "1"
    assert metadata["library_version"]
    assert AdapterConfig.model_validate_json(metadata["config"]) == CONFIG
    assert set(json.loads(metadata["sites"]).values()) == {"linear"}
    loaded = AdapterSet.load(path, clip())
    assert loaded.extra == {"dataset": "flags", "seed": "1"}
    assert all(
        torch.equal(t, loaded.state_dict()[name]) for name, t in adapters.state_dict().items()
    )


def test_float64_adapters_come_back_in_float64(tmp_path):
    adapters = randomize(attach(clip(), CONFIG, seeded()).double())
    adapters.save(tmp_path / "a.safetensors")
    loaded = AdapterSet.load(tmp_path / "a.safetensors", clip())
    assert all(
        torch.equal(t, loaded.state_dict()[name]) for name, t in adapters.state_dict().items()
    )


def test_loading_takes_no_random_number(tmp_path):
    attach(clip(), CONFIG, seeded()).save(tmp_path / "a.safetensors")
    model = clip()
    before = torch.get_rng_state()
    AdapterSet.load(tmp_path / "a.safetensors", model)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (lambda: clip(layers=2), ["unexpected", "visual.transformer.resblocks.2.attn.v.B"]),
        (
            lambda: clip(layers=4),
            ["missing in the file", "visual.transformer.resblocks.3.attn.q.A_s"],
        ),
        (
            lambda: clip(width=16),
            ["resblocks.0.attn.q.A_s: shape (1, 32) in the file, (1, 16) in the model"],
        ),
        (
            torchvision_vit,
            ["missing in the file", "encoder_layer_0.self_attention.q", "unexpected"],
        ),
        (lambda: nn.Linear(3, 3), ["no attention module", "unexpected"]),
    ],
)
def test_a_model_that_does_not_fit(model, words, tmp_path):
    attach(clip(), CONFIG, seeded()).save(tmp_path / "a.safetensors")
    model = model()
    before = snapshot(model)
    with pytest.raises(AdapterError) as error:
        AdapterSet.load(tmp_path / "a.safetensors", model)
    assert all(word in str(error.value) for word in words), str(error.value)
    assert_same(before, snapshot(model))


def test_files_that_are_no_adapters(tmp_path):
    path = tmp_path / "a.safetensors"
    with pytest.raises(AdapterError, match="there is no adapter file"):
        AdapterSet.load(path, clip())
    attach(clip(), CONFIG, seeded()).save(path)
    whole = path.read_bytes()
    for damaged in (b"", b"no safetensors", whole[:100], whole[:-10]):
        path.write_bytes(damaged)
        with pytest.raises(AdapterError, match="damaged or no safetensors file"):
            AdapterSet.load(path, clip())
    save_file({"a": torch.zeros(1)}, path)
    with pytest.raises(AdapterError, match="no adapter file"):
        AdapterSet.load(path, clip())
    save_file({"a": torch.zeros(1)}, path, {"format": "blocklora-adapter", "format_version": "2"})
    with pytest.raises(AdapterError, match="format_version '2'"):
        AdapterSet.load(path, clip())
    save_file(
        {"a": torch.zeros(1)},
        path,
        {"format": "blocklora-adapter", "format_version": "1", "config": "{}"},
    )
    with pytest.raises(AdapterError, match="metadata"):
        AdapterSet.load(path, clip())


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(AdapterError, match="cannot write the adapter file"):
        attach(clip(), CONFIG, seeded()).save(tmp_path / "nowhere" / "a.safetensors")
    with pytest.raises(AdapterError, match="must be strings"):
        attach(clip(), CONFIG, seeded()).save(tmp_path / "a.safetensors", extra={"seed": 1})
    assert not list(tmp_path.iterdir())


def test_an_adapter_is_a_module_of_the_model():
    model = clip()
    adapters = attach(model, AdapterConfig(dropout=0.25), seeded())
    assert sum(isinstance(m, Adapter) for m in model.modules()) == len(adapters.adapters)
    model.train()
    assert all(adapter.training for adapter in adapters.adapters.values())
    model.eval()
    assert not any(adapter.training for adapter in adapters.adapters.values())
