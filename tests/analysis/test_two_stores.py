"""Two sets of records against each other: pairs, what changed, and tests by hand or by scipy."""

from __future__ import annotations

import math

import pytest
from scipy.stats import chi2_contingency, ttest_rel

from blocklora_lib.analysis.two_stores import changes, differences, pair_up, two_binomials
from blocklora_lib.runs.store import RunStore
from blocklora_lib.suite.difference import difference


def record(key, dataset="a", seed=1, lr=0.1, correct=50, method="lora", total=100, rank=2):
    spec = {"dataset": dataset, "shots": 4, "seed": seed, "split": "test", "training": {"lr": lr}}
    spec["method"] = {"name": method, "settings": {"rank": rank}}
    counts = {dataset: {"correct": correct, "total": total}}
    facts = {"key": key, "spec": spec, "status": "done", "result": {"accuracy": counts}}
    return facts | {"provenance": {"versions": {"torch": "2"}, "device": "cpu"}}


def test_two_binomials_are_the_chi_square_test_of_a_table():
    for a, b in (((50, 100), (61, 100)), ((3, 40), (9, 41)), ((700, 1000), (650, 990))):
        table = [[x, n - x] for x, n in (a, b)]
        assert two_binomials(a, b) == pytest.approx(chi2_contingency(table, correction=False)[1])
    assert two_binomials((5, 5), (7, 7)) == 1.0  # no spread: no difference
    assert two_binomials((0, 50), (50, 50)) < 1e-10


def test_pairs_are_of_one_spec_or_each_others_nearest():
    a = [record("1"), record("2", rank=4), record("3", dataset="b"), record("7", seed=9)]
    b = [record("1"), record("5", rank=4, lr=0.2), record("6", dataset="b", lr=0.2)]
    paired = pair_up(a, b)
    assert {(p.a["key"], p.b["key"]) for p in paired.pairs} == {("1", "1"), ("2", "5"), ("3", "6")}
    assert [r["key"] for r in paired.only_a] == ["7"]
    assert paired.only_b == ()
    assert changes(paired) == {("training.lr", "0.1", "0.2"): 2}


def test_of_two_that_are_equally_near_neither_is_a_partner():
    paired = pair_up([record("1")], [record("2", lr=0.2), record("3", lr=0.3)])
    assert paired.pairs == ()
    assert len(paired.only_b) == 2


def test_a_difference_is_the_paired_test_over_sets_of_means_over_seeds():
    a = [record(f"{d}{s}", d, s, correct=40 + s) for d in "abc" for s in (1, 2)]
    b = [record(f"{d}{s}", d, s, correct=45 + 2 * i) for i, d in enumerate("abc") for s in (1, 2)]
    (found,) = differences(pair_up(a, b).pairs)
    expected = ttest_rel([45, 47, 49], [41.5] * 3)
    assert (found.n, found.equal, found.test) == (6, 0, "t over 3 sets")
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.mean == pytest.approx(5.5)
    (one,) = differences(pair_up(a[:2], b[:2]).pairs)
    assert one.test == "t over 2 seeds"
    (single,) = differences(pair_up(a[:1], b[:1]).pairs)
    assert single.test == "two binomials"
    assert math.isnan(single.low)
    assert single.p_value == two_binomials((41, 100), (45, 100))


def test_sets_on_which_one_training_is_evaluated_do_not_count_as_many():
    """They share its luck: of two folders of one method, every other p was below 5%."""

    def trained(seed, gains, dataset="a"):
        found = record(f"{dataset}{seed}", dataset, seed)
        counts = {name: {"correct": 50 + gain, "total": 100} for name, gain in gains.items()}
        return {**found, "result": {"accuracy": counts}}

    where = ("a", "variant", "target")
    a = [trained(seed, dict.fromkeys(where, 0)) for seed in (1, 2)]
    b = [trained(1, dict(zip(where, (5, 6, 4), strict=True)))]
    b += [trained(2, dict(zip(where, (-1, 0, -2), strict=True)))]
    (found,) = differences(pair_up(a, b).pairs)
    assert (found.n, found.test) == (6, "t over 2 seeds")
    assert found.p_value == pytest.approx(ttest_rel([5, -1], [0, 0]).pvalue)
    (single,) = differences(pair_up(a[:1], b[:1]).pairs)
    assert (single.test, single.mean) == ("two binomials", pytest.approx(5))
    others = [[trained(1, {"b": gain}, "b")] for gain in (0, 3)]
    (both,) = differences(pair_up(a + others[0], b + others[1]).pairs)
    assert (both.test, both.mean) == ("t over 2 sets", pytest.approx((2 + 3) / 2))


def test_the_text_names_what_differs_and_leaves_damaged_records_out(tmp_path, monkeypatch):
    both = {
        "A": [record("1"), record("2", seed=2, correct=40), record("3", method="gone")],
        "B": [record("1", correct=80), record("2", seed=2, correct=81)],
    }
    both["B"][0]["provenance"]["device"] = "cuda"

    def facts(store):
        name = store.folder.parent.name
        return both[name], (["run record x is damaged"] if name == "B" else [])

    for name in both:
        (tmp_path / name / "runs").mkdir(parents=True)
    monkeypatch.setattr(RunStore, "facts", facts)
    text, damaged = difference(tmp_path / "A", tmp_path / "B")
    assert damaged == ["run record x is damaged"]
    assert "2 runs are of one spec in both: 0 gave the same counts, 2 did not." in text
    assert "1 runs are in A alone: gone 1." in text
    assert "device  cpu (3)  ->  cuda (1), cpu (1)" in text
    assert "lora    4      2      0      45.0  80.5  +35.50" in text
    assert "50.0% of 100  80.0% of 100" in text
    assert "McNemar's test cannot be made" in text


def test_a_folder_without_records_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="holds no run record; give a results folder"):
        difference(tmp_path, tmp_path)


def test_facts_are_what_read_gives_of_whole_records(tmp_path):
    from blocklora_lib.core.paths import RESULTS

    store = RunStore(RESULTS / "reference" / "pocket" / "runs")
    found, damaged = store.facts()
    assert not damaged
    assert len(found) > 100
    some = RunStore(tmp_path)
    (tmp_path / f"{found[0]['key']}.json").write_text(store._packed[found[0]["key"]])
    (tmp_path / f"{0x123:016x}.json").write_text("{}")
    kept, bad = some.facts()
    assert kept == [found[0]]
    assert len(bad) == 1
    assert "0123.json is damaged" in str(bad[0])
    assert kept[0] == some.read()[0][0].model_dump(mode="json", by_alias=True)
