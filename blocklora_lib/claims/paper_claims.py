"""The claims C1 to C17 that public texts make for the paper, and four findings of this suite, O1 to
O4.

Each row: id, statement, source, kind, where its evidence is shown, its judge, and for a structural
claim the verdict that its proof gives.
"""

from __future__ import annotations

from .claim import Claim
from .judges import ablations, accuracy, costs, counts, published_numbers

ABSTRACT, SUMMARY, OURS = "arXiv abstract", "public summary", "this suite"

CLAIMS = (
    Claim(
        "C1",
        "With n = 1, Block-LoRA is LoRA",
        SUMMARY,
        "structural",
        ("02_equivalence", "worst_errors"),
        counts.one_block_is_lora,
        "confirmed",
    ),
    Claim(
        "C2",
        "Block-LoRA trains d_in r/n + r d_out numbers a projection, LoRA r (d_in + d_out)",
        SUMMARY,
        "structural",
        ("03_counts", "adapter_parameters"),
        counts.parameter_formula,
        "confirmed",
    ),
    Claim(
        "C3",
        "Up to 75% fewer parameters than LoRA",
        SUMMARY,
        "structural",
        ("03_counts", "adapter_parameters"),
        counts.three_quarters_fewer,
        "contradicted",
    ),
    Claim(
        "C4",
        "Matrix operations fall from O(r d²) to O(r d²/n)",
        SUMMARY,
        "structural",
        ("03_counts", "forming"),
        counts.complexity_over_n,
        "confirmed",
    ),
    Claim(
        "C5",
        "Training time falls by up to 31% against LoRA",
        SUMMARY,
        "empirical",
        ("04_time", "training_step"),
        costs.a_third_less_time,
    ),
    Claim(
        "C6",
        "Looping over the blocks brings no gain, summing the B_i first does",
        SUMMARY,
        "empirical",
        ("04_time", "adapter_path"),
        costs.sum_first,
    ),
    Claim(
        "C7",
        "Merged inference has no extra latency or memory",
        SUMMARY,
        "empirical",
        ("12_inference", "latency"),
        costs.merged_is_free,
    ),
    Claim(
        "C8",
        "A tighter generalization bound than LoRA's, its d_in term divided by n",
        SUMMARY,
        "structural",
        ("06_generalization_bound", "ratios"),
        counts.tighter_bound,
        "confirmed",
    ),
    Claim(
        "C9",
        "93.65% on ImageNet at 16 shots",
        SUMMARY,
        "empirical",
        ("08_few_shot", "few_shot"),
        published_numbers.imagenet_at_16,
    ),
    Claim(
        "C10",
        "EuroSAT, 4 shots: 88.08, 3.7% above CLIP-LoRA; ImageNet, 1 shot: 70.43, 3.4% above "
        "PromptSRC",
        SUMMARY,
        "empirical",
        ("08_few_shot", "few_shot"),
        published_numbers.leads,
    ),
    Claim(
        "C11",
        "A shared trained A beats a frozen random one at 1 shot; the gap narrows at 16",
        SUMMARY,
        "empirical",
        ("08_few_shot", "paired_differences"),
        accuracy.without_a,
    ),
    Claim(
        "C12",
        "More blocks save parameters, too many cost accuracy",
        SUMMARY,
        "empirical",
        ("11_ablations", "number_of_blocks"),
        ablations.number_of_blocks,
    ),
    Claim(
        "C13",
        "ImageNet few-shot fits one GPU of 24 GB",
        ABSTRACT,
        "empirical",
        ("05_memory", "memory"),
        costs.fits_24_gb,
    ),
    Claim(
        "C14",
        "Competitive in cross-dataset transfer and domain generalization",
        ABSTRACT,
        "empirical",
        ("09_cross_dataset", "transfer"),
        accuracy.competitive,
    ),
    Claim(
        "C15",
        "Works beyond CLIP and beyond few-shot learning",
        SUMMARY + ", an open question there",
        "empirical",
        ("00_overview", "map"),
        accuracy.beyond_clip,
    ),
    Claim(
        "C16",
        "Sharing regularises where data are few, and fails where a task needs orthogonal feature "
        "spaces",
        SUMMARY,
        "empirical",
        ("15_shared_subspace", "shared_task"),
        ablations.sharing,
    ),
    Claim(
        "C17",
        "Training collapses at 1 shot if A_s starts badly or the learning rate is too high",
        SUMMARY,
        "empirical",
        ("11_ablations", "collapse"),
        ablations.collapse,
    ),
    Claim(
        "O1",
        "Block-LoRA(r, n) trains as LoRA of its width whose B learns n times as fast",
        OURS,
        "structural",
        ("13_theorem", "trajectories"),
        counts.theorem,
        "confirmed",
    ),
    Claim(
        "O2",
        "In real runs LoRA+ of rank r/n with ratio n has Block-LoRA's accuracy",
        OURS,
        "empirical",
        ("16_claims", "controls"),
        accuracy.control_is_the_same,
    ),
    Claim(
        "O3",
        "What Block-LoRA loses to LoRA of rank r it loses to its own width: LoRA of rank r/n loses "
        "it too",
        OURS,
        "empirical",
        ("16_claims", "controls"),
        accuracy.width_is_what_counts,
    ),
    Claim(
        "O4",
        "A trained adapter can have a bound that is not vacuous, below guessing and below "
        "zero-shot's",
        OURS,
        "empirical",
        ("07_nonvacuous_bound", "pac_bayes"),
        counts.bound_that_bites,
    ),
)
