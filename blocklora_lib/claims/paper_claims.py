"""The claims C1 to C18 that public texts make for the paper, and four findings of this suite, O1 to
O4.

Each row: id, statement, source, where its evidence is shown, what its judge needs, its judge, and
for a structural claim what its proof says. A statement that says two things is two claims.
"""

from __future__ import annotations

from .claim import Claim, by_id
from .judges import ablations, accuracy, beyond, costs, counts, published_numbers

ABSTRACT, SUMMARY, OURS = "arXiv abstract", "public summary", "this suite"

CLAIMS = (
    Claim(
        "C1",
        "With n = 1, Block-LoRA is LoRA",
        SUMMARY,
        ("02_equivalence", "worst_errors"),
        ("02_equivalence/worst_errors",),
        counts.one_block_is_lora,
        proof=True,
    ),
    Claim(
        "C2",
        "Block-LoRA trains d_in r/n + r d_out numbers a projection, LoRA r (d_in + d_out)",
        SUMMARY,
        ("03_counts", "adapter_parameters"),
        ("few_shot", "03_counts/adapter_parameters"),
        counts.parameter_formula,
        proof=True,
    ),
    Claim(
        "C3",
        "Up to 75% fewer parameters than LoRA",
        SUMMARY,
        ("03_counts", "adapter_parameters"),
        ("03_counts/adapter_parameters",),
        counts.three_quarters_fewer,
        proof=False,
    ),
    Claim(
        "C4",
        "Matrix operations fall from O(r d²) to O(r d²/n)",
        SUMMARY,
        ("03_counts", "forming"),
        ("03_counts/forming",),
        counts.complexity_over_n,
        proof=True,
    ),
    Claim(
        "C5",
        "Training time falls by up to 31% against LoRA",
        SUMMARY,
        ("04_time", "training_step"),
        ("04_time/training_step",),
        costs.a_third_less_time,
    ),
    Claim(
        "C6",
        "Looping over the blocks brings no gain, summing the B_i first does",
        SUMMARY,
        ("04_time", "adapter_path"),
        ("04_time/adapter_path",),
        costs.sum_first,
    ),
    Claim(
        "C7",
        "Merged inference has no extra latency or memory",
        SUMMARY,
        ("12_inference", "latency"),
        ("12_inference/latency", "12_inference/memory"),
        costs.merged_is_free,
    ),
    Claim(
        "C8",
        "A tighter generalization bound than LoRA's, its d_in term divided by n",
        SUMMARY,
        ("06_generalization_bound", "ratios"),
        ("06_generalization_bound/ratios", "06_generalization_bound/bounds"),
        counts.tighter_bound,
        proof=True,
    ),
    Claim(
        "C9",
        "93.65% on ImageNet at 16 shots",
        SUMMARY,
        ("08_few_shot", "few_shot"),
        (),  # published numbers, and runs where a published profile has them
        published_numbers.imagenet_at_16,
    ),
    Claim(
        "C10",
        "EuroSAT, 4 shots: 88.08, 3.7% above CLIP-LoRA; ImageNet, 1 shot: 70.43, 3.4% above "
        "PromptSRC",
        SUMMARY,
        ("08_few_shot", "few_shot"),
        (),
        published_numbers.leads,
    ),
    Claim(
        "C11",
        "A shared trained A beats a frozen random one at 1 shot; the gap narrows at 16",
        SUMMARY,
        ("08_few_shot", "paired_differences"),
        ("few_shot",),
        accuracy.without_a,
    ),
    Claim(
        "C12",
        "More blocks save parameters, too many cost accuracy",
        SUMMARY,
        ("11_ablations", "number_of_blocks"),
        ("blocks",),
        ablations.number_of_blocks,
    ),
    Claim(
        "C13",
        "ImageNet few-shot fits one GPU of 24 GB",
        ABSTRACT,
        ("05_memory", "measured_step"),
        ("05_memory/measured_step", "05_memory/memory", "05_memory/measured_on_gpus"),
        costs.fits_24_gb,
    ),
    Claim(
        "C14",
        "Competitive in cross-dataset transfer and domain generalization",
        ABSTRACT,
        ("09_cross_dataset", "transfer"),
        ("cross_dataset", "few_shot"),
        accuracy.competitive,
    ),
    Claim(
        "C15",
        "Works beyond CLIP and beyond few-shot learning",
        SUMMARY + ", an open question there",
        ("19_beyond_clip", "tasks"),
        ("sigmoid", "captioner", "retrieval", "texts"),
        beyond.beyond_clip,
    ),
    Claim(
        "C16a",
        "Sharing fails where a task needs orthogonal feature spaces",
        SUMMARY,
        ("15_shared_subspace", "shared_task"),
        ("15_shared_subspace/shared_task",),
        ablations.sharing_fails,
    ),
    Claim(
        "C16b",
        "Sharing regularises where data are few",
        SUMMARY,
        ("15_shared_subspace", "shared_task"),
        ("15_shared_subspace/shared_task",),
        ablations.sharing_regularises,
    ),
    Claim(
        "C17a",
        "Training collapses at 1 shot if the learning rate is too high",
        SUMMARY,
        ("11_ablations", "collapse"),
        ("collapse",),
        ablations.too_high_a_rate,
    ),
    Claim(
        "C17b",
        "Training collapses at 1 shot if A_s starts badly",
        SUMMARY,
        ("11_ablations", "collapse"),
        ("collapse",),
        ablations.bad_start,
    ),
    Claim(
        "C18",
        "Outperforms or matches CLIP-LoRA and PromptSRC",
        ABSTRACT,
        ("17_comparison", "against"),
        ("comparison",),
        accuracy.outperforms_or_matches,
    ),
    Claim(
        "O1",
        "Block-LoRA(r, n) trains as LoRA of its width whose B learns n times as fast",
        OURS,
        ("13_theorem", "trajectories"),
        ("13_theorem/trajectories",),
        counts.theorem,
        proof=True,
    ),
    Claim(
        "O2",
        "In real runs LoRA+ of rank r/n with ratio n has Block-LoRA's accuracy",
        OURS,
        ("16_claims", "controls"),
        ("twins",),
        accuracy.control_is_the_same,
    ),
    Claim(
        "O3",
        "What Block-LoRA loses to LoRA of rank r it loses to its own width: LoRA of rank r/n loses "
        "it too",
        OURS,
        ("16_claims", "controls"),
        ("few_shot",),
        accuracy.width_is_what_counts,
    ),
    Claim(
        "O4",
        "A trained adapter can have a bound that is not vacuous: below guessing, and below the "
        "least that zero-shot's error can be",
        OURS,
        ("07_nonvacuous_bound", "occam"),
        ("07_nonvacuous_bound/occam",),
        counts.bound_that_bites,
    ),
)
BY_ID = by_id(CLAIMS)
