"""Subsampled populations against a second computation, closed forms and simulated populations."""

import numpy as np
import pandas as pd
import pytest
from helpers import plane_of
from scipy.stats import norm, spearmanr
from sklearn.metrics import f1_score

from dynmia import UserError, open_run, vulnerability_plane
from dynmia import dynamics as dyn
from dynmia.attack.scoring import Scoring
from dynmia.book import maker, read_table
from dynmia.stats.simulate import Simulator
from dynmia.store.run import resolve

precision = maker("precision")
disjoint_parts, measure, precision_table = precision.disjoint_parts, precision.measure, precision.precision_table
fit_law, required_shadow_models, spread_law = precision.fit_law, precision.required_shadow_models, precision.spread_law


@pytest.fixture(scope="module")
def population():
    return Simulator(samples=150, checkpoints=2, separation=2.0, seed=1).run(64)


@pytest.fixture(scope="module")
def measured(population):
    with pytest.MonkeyPatch.context() as patch:  # the other metrics and rule take the same lines
        patch.setattr(precision, "WANTED", ("advantage",))
        patch.setattr(precision, "SCORINGS", ("lira:bayes",))
        return measure(population, (5, 8, 10, 20), partitions=5)


def table_of(measured):
    return precision_table(measured.assign(**{name: measured.advantage for name in precision.WANTED}))


def test_parts_are_disjoint_scorable_and_reproducible(population):
    parts = list(disjoint_parts(population, 5, 3))
    assert len(parts) == 12
    assert len(np.unique(np.concatenate([part.model for part in parts]))) == 60
    for part in parts:
        inside = population.keep.sel(model=part.model).values.sum(0)
        assert part.sample.values.tolist() == np.flatnonzero((inside >= 2) & (inside <= 3)).tolist()
    again = next(disjoint_parts(population, 5, 3))
    assert again.model.equals(parts[0].model)
    assert not again.model.equals(next(disjoint_parts(population, 5, 4)).model)


def test_a_row_equals_a_second_computation(population, measured):
    first, second = list(disjoint_parts(population, 5, 2))[:2]
    whole, a, b = (
        vulnerability_plane(run, Scoring("lira", "bayes", variance="pooled")) for run in (population, first, second)
    )
    whole = whole.sel(sample=b.sample)
    row = measured.loc["lira:bayes", 5, 2, 1]
    assert row.samples == b.sizes["sample"]
    assert row.advantage == pytest.approx(1000 * float(b.advantage[-1].mean() - whole.advantage[-1].mean()))
    flags = [dyn.vulnerable(plane).values[-1] for plane in (b, whole)]
    assert row.flip_full == pytest.approx(100 * np.mean(flags[0] != flags[1]))
    assert row.lost_full == pytest.approx(100 * (1 - f1_score(*flags)))
    common = sorted(set(a.sample.values) & set(b.sample.values))
    a, b = a.sel(sample=common), b.sel(sample=common)
    expected = spearmanr(a.advantage.mean("epoch"), b.advantage.mean("epoch")).statistic
    assert row.rank_disjoint == pytest.approx(expected)
    assert np.isnan(measured.loc["lira:bayes", 5, 2, 0].rank_disjoint)


def test_independent_trials_have_the_binomial_spread():
    rng = np.random.default_rng(0)
    p, q = rng.beta(1, 1, 20_000), rng.beta(1, 9, 20_000)
    a, b = (plane_of(rng.binomial(10, q)[None], rng.binomial(10, p)[None]) for _ in range(2))
    found = precision._agreement(a, b, "disjoint")
    truth = np.sqrt((p * (1 - p) / 10 + q * (1 - q) / 10).mean())
    assert found["noise_disjoint"] == pytest.approx(truth, rel=0.02)
    assert found["noise_binomial"] == pytest.approx(truth, rel=0.02)


def test_trials_that_share_their_fitted_means_spread_more(measured):
    rows = measured.xs(20, level="models")
    effect = (rows.noise_disjoint**2).mean() / (rows.noise_binomial**2).mean()
    assert precision.design_effects(measured)["lira:bayes", 20] == pytest.approx(effect)
    assert effect > 1.1


def test_the_spread_of_a_mean_over_models_is_known():
    rng = np.random.default_rng(2)
    value, rows = rng.normal(3, 2, 128), {("lira:bayes", 128, 0, 0): dict.fromkeys(precision.WANTED, 0.0)}
    for models in (5, 10, 20, 40, 80):
        for partition in range(150):
            order = rng.permutation(128)
            for subset in range(128 // models):
                error = value[order[subset * models : (subset + 1) * models]].mean() - value.mean()
                rows["lira:bayes", models, partition, subset] = dict.fromkeys(precision.WANTED, error)
    frame = pd.DataFrame.from_dict(rows, "index").rename_axis(precision.INDEX[1:])
    whole = precision_table(frame)
    table = whole.loc["lira:bayes", "auc", :]
    models = table.index.get_level_values("models").to_numpy()
    np.testing.assert_allclose(table.spread, value.std(ddof=1) / np.sqrt(models), rtol=0.1)
    assert (abs(table.bias) < table.high - table.low).all()  # four standard errors
    assert (abs(table.spread * np.sqrt(models) / value.std(ddof=1) - 1) < 4 * table.error / table.spread).all()
    assert spread_law(whole, "lira:bayes", "auc").exponent == pytest.approx(-0.5, abs=0.05)
    assert table.corrected.tolist() == [False] * 4 + [True]
    assert spread_law(whole, "lira:bayes", "auc", leave_out=20).predict(20)[0, 0] == pytest.approx(
        table.spread[20], rel=0.1
    )


def test_the_law_foretells_the_spread_of_independent_populations(population, measured):
    simulator = Simulator(samples=150, checkpoints=2, separation=2.0, seed=1)
    table = table_of(measured)
    drawn = [float(vulnerability_plane(simulator.run(20, k), "lira:bayes").advantage[-1].mean()) for k in range(1, 41)]
    foretold = spread_law(table, "lira:bayes", "advantage", leave_out=20).predict(20)[0, 0]
    assert 1000 * np.std(drawn, ddof=1) == pytest.approx(foretold, rel=0.35)
    bias = 1000 * np.mean(drawn) - 1000 * float(
        vulnerability_plane(simulator.run(64, 99), "lira:bayes").advantage[-1].mean()
    )
    assert table.loc["lira:bayes", "advantage", 20].bias == pytest.approx(bias, abs=15)


def test_required_models_of_an_advantage_in_closed_form():
    z = norm.ppf(0.975)
    assert required_shadow_models(0.1) == 386  # 2 z^2 / 2 / 0.01 = 384.1
    for width in (0.05, 0.2, 0.31):
        models = required_shadow_models(width)
        assert z * np.sqrt(2 * 0.25 / (models / 2)) <= width < z * np.sqrt(2 * 0.25 / (models / 2 - 1))
    assert required_shadow_models(0.1, level=0.5) < 100
    plane = plane_of([[1, 2]], [[8, 10]])  # 10 trials a side
    variance = np.mean([0.8 * 0.2 + 0.1 * 0.9, 0.2 * 0.8]) * 10 / 9
    assert required_shadow_models(0.1, plane=plane) == 2 * np.ceil(z**2 * variance / 0.01)
    assert required_shadow_models(0.1, plane=plane, design_effect=2) == 2 * np.ceil(2 * z**2 * variance / 0.01)
    assert required_shadow_models(0.1, plane=plane_of([[0, 0]], [[10, 10]])) == precision.LEAST


def test_the_promised_half_width_is_held_by_simulated_counts():
    models = required_shadow_models(0.2)
    rng = np.random.default_rng(0)
    tpr, fpr = rng.binomial(models // 2, 0.5, (2, 100_000)) / (models // 2)
    assert np.mean(abs(tpr - fpr) <= 0.2) == pytest.approx(0.95, abs=0.01)


def test_required_models_of_a_metric_in_closed_form():
    sizes = np.array([5, 10, 20, 40, 80])
    law = fit_law(sizes, 30 * sizes**-0.5, 0.1 * sizes**-0.5)
    expected = (norm.ppf(0.975) * 30 / 5) ** 2
    assert required_shadow_models(5, law=law) == np.ceil(expected)
    low, high = (required_shadow_models(5, law=law, limit=limit) for limit in ("low", "high"))
    assert low < expected < high
    assert required_shadow_models(1e6, law=law) == precision.LEAST


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"precision": 0}, "above 0"),
        ({"precision": 1.2}, "below 1"),
        ({"precision": float("nan")}, "above 0"),
        ({"precision": 0.1, "level": 1}, "between 0 and 1"),
        ({"precision": 0.1, "design_effect": 0.5}, "at least 1"),
        ({"precision": 1e-4}, "more than 100,000"),
    ],
)
def test_impossible_input_is_one_clear_line(given, said):
    with pytest.raises(UserError, match=said):
        required_shadow_models(**given)


def test_a_law_and_a_plane_are_not_both(measured):
    law = spread_law(table_of(measured), "lira:bayes", "advantage")
    with pytest.raises(UserError, match="not both"):
        required_shadow_models(0.1, plane=plane_of([[1]], [[2]]), law=law)
    with pytest.raises(UserError, match="unknown limit"):
        required_shadow_models(0.1, law=law, limit="middle")
    with pytest.raises(UserError, match="more than"):
        required_shadow_models(1e-9, law=law)


def test_sizes_must_be_subsets(population):
    for sizes in ((3,), (64,), ()):
        with pytest.raises(UserError, match="from 4 to below the 64"):
            measure(population, sizes)


def test_the_cached_table_is_of_the_released_runs():
    table = read_table("data/precision.csv")
    header = resolve("data/precision.csv").read_text().split("\n", 1)[0]
    for name in table.index.unique("run"):
        assert open_run(resolve(f"data/{name}.nc")).attrs["sha256"][:12] in header
    assert set(table.index.unique("models")) == {*precision.SIZES, 128}
    with pytest.raises(UserError, match="does not exist"):
        read_table("nowhere.csv", "precision.csv")
