"""A new method is one file: put beside the others, it is in grid, tables and figures."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pandas as pd
import pytest

from blocklora_lib.core.paths import PACKAGE, ROOT

NEAREST_MEAN = '''
"""Nearest mean: the class whose few images' mean row is nearest."""

from blocklora_lib.learning.feature_method import FeatureMethod


class Method(FeatureMethod):
    name = "nearest_mean"
    label = "Nearest mean"

    def fit(self, context):
        from blocklora_lib.learning.feature_fit import FeaturePredictor, one_hot

        means = one_hot(context, len(context.tokens)).T @ context.features().unit
        return FeaturePredictor(context, lambda features, _: features.unit @ means.T)
'''
PROFILE = """
extends: smoke
name: mine
description: A method of my own beside two others.
targets: [chess]
rates: null
methods:
  - {name: zero_shot}
  - {name: block_lora, settings: {rank: 2, n_blocks: 2}}
  - {name: nearest_mean}
experiments: {few_shot: null, blocks: null, collapse: null, cross_dataset: null, twins: null,
  placement: null, sigmoid: null, captioner: null, retrieval: null, texts: null}
"""


@pytest.mark.slow
def test_it_is_in_grid_tables_and_figures(tmp_path):
    place, results = tmp_path / "suite", tmp_path / "results"
    shutil.copytree(PACKAGE, place / PACKAGE.name, ignore=shutil.ignore_patterns("__pycache__"))
    for folder in ("data_manifests", "profiles", "published", "pocket", "notebooks"):
        (place / folder).symlink_to(ROOT / folder)
    (place / PACKAGE.name / "methods" / "nearest_mean.py").write_text(NEAREST_MEAN)
    (tmp_path / "profiles").symlink_to(ROOT / "profiles")
    mine = tmp_path / "mine.yaml"
    mine.write_text(PROFILE)
    environment = os.environ | {"PYTHONPATH": str(place), "XDG_CACHE_HOME": str(tmp_path)}

    def blocklora(*words):
        command = [sys.executable, "-m", "blocklora_lib.cli", *words, "--profile", str(mine)]
        done = subprocess.run(
            [*command, "--results", str(results)], env=environment, cwd=tmp_path,
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "nearest_mean" in blocklora("grid", "--experiment", "comparison")
    blocklora("notebook", "17_comparison")
    for kind, name in (
        ("tables", "comparison"),
        ("tables", "budgets"),
        ("tables", "ranks_table"),
        ("tables", "against"),
        ("figures", "accuracy_of_methods"),
        ("figures", "fronts"),
    ):
        told = pd.read_csv(results / kind / "17_comparison" / f"{name}.csv")
        assert told.isin(["Nearest mean"]).any(axis=None), name
