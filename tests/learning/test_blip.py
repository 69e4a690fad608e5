"""BLIP with random weights: scores as stock transformers', losses, training, retrieval, loading."""

from __future__ import annotations

import copy
import math
import sys

import pytest
import torch
from adapted_layers import seeded
from torch.nn import functional as F

from blocklora_lib.adapters.config import AdapterConfig
from blocklora_lib.core.schema import AdapterError
from blocklora_lib.learning import blip
from blocklora_lib.learning.blip import Texts

transformers = pytest.importorskip("transformers")

SMALL = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2)
TEXT = SMALL | dict(
    vocab_size=40, max_position_embeddings=8, encoder_hidden_size=16, projection_dim=16,
    bos_token_id=1, eos_token_id=2, pad_token_id=0, sep_token_id=2,
)  # fmt: skip
VISION = SMALL | dict(image_size=32, patch_size=16)
CONFIG = AdapterConfig(rank=4, n_blocks=2, dropout=0.1)


@pytest.fixture(scope="module")
def sizes():
    return transformers.BlipConfig(
        text_config=TEXT, vision_config=VISION, projection_dim=16, image_text_hidden_size=16
    )


@pytest.fixture
def model(sizes):
    torch.manual_seed(0)
    made = transformers.BlipForImageTextRetrieval(sizes).eval()
    for parameter in made.parameters():  # its own start, 0.02, lets all images look alike
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.25)
    return made


@pytest.fixture(scope="module")
def pairs():
    """Eight images, each of a pattern of its own, and eight texts of other lengths."""
    images = torch.randn(8, 3, 32, 32, generator=seeded(1))
    ids = torch.randint(3, 40, (8, 8), generator=seeded(2))
    mask = torch.ones_like(ids)
    for i in range(8):
        mask[i, 5 + i % 4 :] = 0
    ids[:, 0] = 1
    return images, Texts(ids * mask, mask)


def test_both_scores_are_those_of_stock_transformers(model, pairs):
    images, texts = pairs
    stock = dict(input_ids=texts.ids, attention_mask=texts.mask, pixel_values=images)
    with torch.no_grad():
        cosines, _ = blip.retrieval_scores(model, images, texts, batch=3)
        expected = model(**stock, use_itm_head=False).itm_score
        torch.testing.assert_close(cosines, expected, rtol=1e-5, atol=1e-6)
        matched = blip.matching(model, blip.image_states(model, images), texts)
        expected = model(**stock, use_itm_head=True).itm_score
        torch.testing.assert_close(matched, expected, rtol=1e-5, atol=1e-6)


def test_the_best_are_ranked_by_both_scores_and_the_rest_below(model, pairs):
    images, texts = pairs
    cosines, _ = blip.retrieval_scores(model, images, texts)
    to_text, to_image = blip.retrieval_scores(model, images, texts, matched=3)
    for of_images, scores, ranked in ((True, cosines, to_text), (False, cosines.T, to_image)):
        assert ((ranked > blip.NOT_RANKED).sum(1) == 3).all()
        for i in (0, 5):
            for j in scores[i].topk(3).indices.tolist():
                image, text = (i, j) if of_images else (j, i)
                with torch.no_grad():
                    logits = model(
                        input_ids=texts.ids[[text]],
                        attention_mask=texts.mask[[text]],
                        pixel_values=images[[image]],
                    ).itm_score
                expected = scores[i, j] + logits[0, 1]
                torch.testing.assert_close(ranked[i, j], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_adapter_of_both_towers_and_of_the_cross_attention_is_trained(model, pairs):
    adapters = blip.adapt(model, CONFIG, seeded())
    names = {name for name, _ in adapters.sites}
    layer = "text_encoder.encoder.layer.1"
    assert {
        "vision_model.encoder.layers.0.self_attn.qkv",
        f"{layer}.attention.self.query",
        f"{layer}.crossattention.self.value",
    } <= names
    assert len(names) == 2 + 2 * 2 * 3
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with torch.no_grad():
        start = float(blip.loss(model, *pairs, seeded(5)))
    losses = blip.train(adapters, *pairs, steps=40, lr=2e-2)
    with torch.no_grad():
        assert float(blip.loss(model, *pairs, seeded(5))) < 0.8 * start
    assert len(losses) == 40
    own = set(adapters.state_dict())
    for key, tensor in model.state_dict().items():
        trained = any(key.endswith(f"adapters.{end}") for end in ("weight.A_s", "weight.B"))
        assert trained == (not torch.equal(tensor, before[key])), key
    assert len(own) == 2 * len(names)


def test_towers_and_targets_are_heeded_and_what_is_not_is_refused(model):
    text = CONFIG.model_copy(update={"towers": ("text",), "targets": ("q", "o")})
    names = [name for name, _ in blip.adapt(model, text, seeded()).sites]
    assert len(names) == 2 * 2 * 2
    assert all(name.startswith("text_encoder.encoder.layer.") for name in names)
    assert "text_encoder.encoder.layer.0.crossattention.output.dense" in names
    for update, told in (
        (dict(targets=("q", "v")), "self_attn.qkv computes q, k, v in one layer"),
        (dict(layers=(0,)), "cross-attention is adapted in all layers"),
    ):
        with pytest.raises(AdapterError, match=told):
            blip.adapt(model, CONFIG.model_copy(update=update))


def test_without_transformers_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'blocklora\[hugging_face\]'"):
        blip.load_blip("anything")


@pytest.mark.slow
def test_on_a_gpu_it_scores_and_trains_as_on_a_cpu(model, pairs, gpu):
    """No device error, inputs given on the CPU; the stand-in has a CPU's numbers."""
    there = copy.deepcopy(model).to("cuda")
    dry, found = CONFIG.model_copy(update={"dropout": 0.0}), []
    for each in (model, there):
        with torch.no_grad():
            scores, _ = blip.retrieval_scores(each, *pairs, batch=3)
            to_text, _ = blip.retrieval_scores(each, *pairs, matched=3)
        adapters = blip.adapt(each, dry, seeded())
        losses = blip.train(adapters, *pairs, steps=3, lr=2e-2)
        held = torch.cat([p.detach().cpu().flatten() for p in adapters.parameters()])
        found.append((scores.cpu(), to_text.cpu(), torch.tensor(losses), held))
    for here, on_gpu in zip(*found, strict=True):
        torch.testing.assert_close(on_gpu, here, rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_training_on_pairs_brings_them_together(model, pairs):
    chance = 100 / 8
    adapters = blip.adapt(model, CONFIG.model_copy(update={"dropout": 0.0}), seeded())
    blip.train(adapters, *pairs, steps=60, lr=2e-2)
    to_text, to_image = blip.retrieval_scores(model, *pairs, matched=4)
    assert blip.recall(to_text, 1) > 3 * chance
    assert blip.recall(to_image, 1) > 3 * chance


def test_the_loss_is_blips(model, pairs, monkeypatch):
    """By its definition, with the negatives that were drawn."""
    images, texts = pairs[0][:4], pairs[1][:4]
    drawn = []
    multinomial = torch.multinomial

    def note(weights, n, generator):
        drawn.append((weights, multinomial(weights, n, generator=generator)))
        return drawn[-1][1]

    monkeypatch.setattr(torch, "multinomial", note)
    with torch.no_grad():
        found = blip.loss(model, images, texts, seeded(3))
        stock = dict(input_ids=texts.ids, attention_mask=texts.mask)
        logits = model(pixel_values=images, use_itm_head=False, **stock).itm_score / 0.07
        expected = sum(
            -float(F.log_softmax(scores, -1).diagonal().mean()) / 2 for scores in (logits, logits.T)
        )
        (of_text, wrong_text), (of_image, wrong_image) = drawn
        for weights, scores in ((of_text, logits), (of_image, logits.T)):
            assert not weights.diagonal().any()  # never the own
            ratio = weights[0, 1] / weights[0, 2]
            assert float(ratio) == pytest.approx(math.exp(scores[0, 1] - scores[0, 2]), rel=1e-4)
        pair = [(i, i, 1) for i in range(4)]
        pair += [(i, int(wrong_text[i]), 0) for i in range(4)]
        pair += [(int(wrong_image[i]), i, 0) for i in range(4)]
        terms = []
        for image, text, together in pair:
            one = {key: value[[text]] for key, value in stock.items()}
            score = model(pixel_values=images[[image]], **one).itm_score
            terms.append(-float(F.log_softmax(score, -1)[0, together]))
        expected += sum(terms) / len(terms)
    assert float(found) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="1 pair has nothing to be told apart from"):
        blip.loss(model, images[:1], texts[:1], seeded())


def test_recall_counts_the_own_last_among_equals():
    scores = torch.tensor([[3.0, 1, 2], [3, 1, 2], [3, 1, 2]])
    assert blip.recall(scores, 1) == pytest.approx(100 / 3)
    assert blip.recall(scores, 2) == pytest.approx(200 / 3)
    assert blip.recall(torch.zeros(4, 4), 3) == 0
    assert blip.recall(torch.zeros(4, 4), 4) == 100
    assert blip.recall(torch.full((4, 4), torch.nan), 1) == 0
    with pytest.raises(ValueError, match="row 3 has none of its own"):
        blip.recall(torch.zeros(4, 3), 1)


def test_images_and_texts_that_are_no_pairs_are_refused(model, pairs):
    adapters = blip.adapt(model, CONFIG)
    for images, texts in ((pairs[0][:3], pairs[1]), (pairs[0], pairs[1][:3])):
        with pytest.raises(ValueError, match="are no pairs"):
            blip.train(adapters, images, texts, steps=1, lr=1e-3)


def test_a_checkpoint_is_loaded_from_a_folder(model, pairs, tmp_path):
    model.save_pretrained(tmp_path)
    loaded, processor = blip.load_blip(tmp_path)
    assert processor is None
    assert not loaded.training
    ours, theirs = (blip.retrieval_scores(m, *pairs)[0] for m in (loaded, model))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


def test_what_is_no_blip_for_matching_is_refused(sizes, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match=r"no BLIP at .*nowhere"):
        blip.load_blip(tmp_path / "nowhere")
    transformers.BlipForConditionalGeneration(sizes).save_pretrained(tmp_path / "captions")
    with pytest.raises(ValueError, match=r"captions lacks itm_head.*trained for another task"):
        blip.load_blip(tmp_path / "captions")
    text = {key: TEXT[key] for key in SMALL} | dict(vocab_size=40, max_position_embeddings=8)
    config = transformers.CLIPTextConfig(**text, bos_token_id=1, eos_token_id=2)
    transformers.CLIPTextModel(config).save_pretrained(tmp_path / "clip")
    with pytest.raises(ValueError, match="is a clip_text_model, no BLIP"):
        blip.load_blip(tmp_path / "clip")
