"""The chapter on the number of shadow models: its tables from the cached subsets, its sentences by their rules."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from dynmia import book
from dynmia.attack.plane import vulnerability_planes
from dynmia.attack.scoring import Scoring
from dynmia.chapters import figures_how_many, how_many
from dynmia.chapters.retest import LABELS

precision = book.maker("precision")


@pytest.fixture(scope="module")
def chapter():
    measured = book.read_table("data/precision.csv")
    tables = {name: precision.precision_table(part.droplevel("run")) for name, part in measured.groupby(level="run")}
    scored = {
        n: vulnerability_planes(r, [Scoring.of(rule, variance="pooled") for rule in book.RULES])
        for n, r in book.released("14").items()
    }
    planes = {rule: {name: both[rule] for name, both in scored.items()} for rule in book.RULES}
    return measured, tables, planes


def test_more_models_do_better_in_the_released_populations(chapter):
    measured, tables, _ = chapter
    for name, table in tables.items():
        error = table.bias.abs().unstack("models")
        assert (error[80] <= error[20] + 1e-9).mean() > 0.8
        ranks = measured.loc[name].groupby(level=["rule", "models"]).rank_disjoint.mean().unstack("models")
        assert (np.diff(ranks[[5, 10, 20, 40]]) > 0).all()


def test_tables_print_what_was_measured(chapter):
    measured, tables, planes = chapter
    printed = how_many.metric_table(tables, "lira:bayes")
    row = tables["mnist-cnn-500-n128"].loc["lira:bayes", "vulnerable", 20]
    assert printed.loc[("MNIST", "vulnerable at the end (%)"), "N = 20"].startswith(f"{row.bias:.1f} [")
    agreement = how_many.agreement_table(measured)
    assert agreement.loc[("MNIST", "lira:bayes", 80), "design effect"] == "–"
    assert float(agreement.loc[("digits", "lira:bayes", 5), "left out (%)"]) == pytest.approx(37.6, abs=1)
    needed = how_many.required_table(measured, planes)
    assert (needed.loc[(slice(None), slice(None), "0.1"), "worst case"] == 386).all()
    assert (needed["all samples"] <= needed["all samples, design effect"]).all()
    assert (needed["all samples"] <= needed["worst case"]).all()


def test_held_back_leaves_out_what_does_not_vary(chapter):
    laws, key = how_many.held_back(chapter[1]), ("digits-cnn-600-n128", "lira:fpr@0.01", "early_recall")
    assert laws.ratio.between(0.3, 3).all()
    constant = chapter[1][key[0]]
    constant = constant.assign(spread=constant.spread.where([row != (*key[1:], 20) for row in constant.index], 0.0))
    tables = chapter[1] | {key[0]: constant}
    assert key in laws.index.droplevel("models")
    assert key not in how_many.held_back(tables).index.droplevel("models")


def test_sentences_follow_their_rules(chapter):
    measured, tables, planes = chapter
    text = " ".join(how_many.verdict(measured, tables, planes))
    row = tables["mnist-cnn-500-n128"].loc["lira:fpr@0.01", "speed_mean", 20]
    assert (abs(row.bias) > 1.96 * row.spread) == ("encoding speed, mean" in text)
    easy = {name: table.assign(bias=0.0) for name, table in tables.items()}
    alike = measured.assign(rank_disjoint=0.9, noise_disjoint=measured.noise_binomial)
    text = " ".join(how_many.verdict(alike, easy, planes))
    assert text.count("for no metric") == 4
    assert text.count("alike well") == 4
    assert text.count("varies 1.0 times") == 4


@pytest.mark.parametrize(("low", "high", "said"), [(0.01, 0.1, "yes"), (0.2, 0.4, "no"), (0.1, 0.3, "open")])
def test_the_check_of_the_paper_is_answered_by_the_interval(low, high, said):
    columns = [
        "value",
        "low",
        "high",
        "population_low",
        "population_high",
        "noise",
        "noise_low",
        "noise_high",
        "chance",
    ]
    table = pd.DataFrame(0.5, list(LABELS), columns)
    table.loc["cv_advantage", ["value", "population_low", "population_high"]] = [(low + high) / 2, low, high]
    table.loc["icc_advantage", ["value", "low", "high"]] = [0.2, 0.1, 0.3]
    lines = how_many.retest_verdict({"lira:bayes": table})
    assert f"below 0.15: {said}." in lines[0]
    assert "less agreement than sampling noise" in lines[1]
    assert "what sampling noise alone leaves" in lines[2]


def test_figures_are_drawn_from_what_is_there(chapter):
    measured, tables, planes = chapter
    figure = figures_how_many.required_panels(measured, tables, planes["lira:bayes"], "lira:bayes")
    worst = figure.axes[0].lines[0]
    np.testing.assert_allclose(worst.get_ydata() ** 2 * worst.get_xdata(), 1.96**2)
    assert len(figures_how_many.agreement_panels(measured).axes) == 6
    assert len(figures_how_many.bias_panels(tables, "lira:bayes").axes) == 8
    plt.close("all")
