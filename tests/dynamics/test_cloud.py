import numpy as np
import pytest
import xarray as xr
from helpers import HIGH, LOW, MID, path_of, plane_of, random_plane, run_of_four_checkpoints
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.cluster import KMeans
from sklearn.metrics import silhouette_score

from dynmia import UserError, vulnerability_plane
from dynmia import dynamics as dyn
from dynmia.dynamics.metrics import METRICS, epoch_of_recall

SMALL = plane_of(tp=[[0, 0], [6, 0], [8, 10]], fp=[[0, 0], [8, 0], [8, 0]])


def test_centre_of_mass_by_hand():
    centre = dyn.centre_of_mass(SMALL)
    np.testing.assert_allclose(centre.tpr, [0, 0.3, 0.9], rtol=1e-15)
    np.testing.assert_allclose(centre.fpr, [0, 0.4, 0.4], rtol=1e-15)


def test_displacement_is_in_thousandths_of_the_plane():
    # (0.4, 0.3) has length 0.5
    np.testing.assert_allclose(dyn.displacement(SMALL), [0, 500, 1000 * np.hypot(0.4, 0.9)], rtol=1e-15)


def test_encoding_speed_is_per_epoch_and_labelled_by_the_later_epoch():
    speed = dyn.encoding_speed(SMALL)
    assert speed.epoch.values.tolist() == [2, 4]
    np.testing.assert_allclose(speed, [[1.0 / 2, 0], [0.2 / 2, 1 / 2]], rtol=1e-14)


def test_speed_divides_by_uneven_steps():
    plane = SMALL.assign_coords(epoch=[0, 1, 5])
    np.testing.assert_allclose(dyn.encoding_speed(plane), [[1.0, 0], [0.2 / 4, 1 / 4]], rtol=1e-14)
    np.testing.assert_allclose(dyn.signed_speed(plane), [[-0.2, 0], [0.2 / 4, 1 / 4]], rtol=1e-14)


def test_signed_speed_tells_forgetting_from_encoding():
    np.testing.assert_allclose(dyn.signed_speed(plane_of([[2], [8], [4]], [[0], [0], [0]])).T, [[0.3, -0.2]])


def test_speed_is_at_least_the_signed_speed_over_root_two():
    plane = random_plane(0)
    assert (dyn.encoding_speed(plane) * np.sqrt(2) >= abs(dyn.signed_speed(plane)) - 1e-12).all()


def test_dynamic_vulnerability_is_the_time_average_of_the_advantage():
    np.testing.assert_allclose(dyn.dynamic_vulnerability(SMALL), [-0.2 / 3, 1 / 3], rtol=1e-14)


@pytest.mark.parametrize(("tp", "fp", "bits"), [
    ([0, 0, 10, 10], [0, 10, 0, 10], 2),  # uniform over 4 cells
    ([5, 5, 5, 5], [1, 1, 1, 1], 0),
    ([0, 0, 0, 10], [0, 0, 0, 0], 0.25 * np.log2(4) + 0.75 * np.log2(4 / 3)),
])  # fmt: skip
def test_entropy_by_hand(tp, fp, bits):
    assert dyn.spatial_entropy(plane_of([tp], [fp])).item() == pytest.approx(bits, abs=1e-14)


@pytest.mark.parametrize("bins", [2, 5, 11])
def test_rate_of_one_falls_in_the_last_bin(bins):
    plane = plane_of([[100, 99, 100]], [[100, 99, 99]], models=100)
    assert dyn.spatial_entropy(plane, bins=bins).item() == 0


def test_eleven_bins_tell_all_tenths_apart():
    plane = plane_of([list(range(11))], [[0] * 11])
    assert dyn.spatial_entropy(plane).item() == pytest.approx(np.log2(11), abs=1e-14)
    assert dyn.spatial_entropy(plane, bins=5).item() < np.log2(5)


def test_entropy_equals_a_numpy_histogram():
    plane = random_plane(1, 200)
    for t, got in enumerate(dyn.spatial_entropy(plane, bins=7).values):
        counts, _, _ = np.histogram2d(plane.tpr[t], plane.fpr[t], bins=7, range=[[0, 1], [0, 1]])
        p = counts[counts > 0] / 200
        assert got == pytest.approx(-(p * np.log2(p)).sum(), abs=1e-12)


@pytest.mark.parametrize("models", [3, 6, 9, 12, 15, 300])
def test_one_third_and_two_thirds_lie_in_the_middle(models):
    low, high = models // 3, 2 * models // 3
    plane = plane_of([[low, high, low - 1, high + 1]], [[low, high, low - 1, high + 1]], models=models)
    assert dyn.states(plane).values.tolist() == [[4, 4, 0, 8]]


@pytest.mark.parametrize(("tp", "fp", "state"), [
    (LOW, LOW, "TPR low, FPR low"), (LOW, HIGH, "TPR low, FPR high"), (MID, LOW, "TPR mid, FPR low"),
    (HIGH, LOW, "TPR high, FPR low"), (HIGH, MID, "TPR high, FPR mid"), (HIGH, HIGH, "TPR high, FPR high"),
])  # fmt: skip
def test_states_have_the_names_of_their_thirds(tp, fp, state):
    plane = plane_of([[tp]], [[fp]])
    assert dyn.STATES[dyn.states(plane).item()] == state
    assert dyn.vulnerable(plane).item() == (state == "TPR high, FPR low")


MOVES = plane_of(tp=[[0, 0, 0, 0], [10, 10, 0, 5], [10, 0, 10, 5]], fp=np.zeros((3, 4)))
LL, ML, HL = "TPR low, FPR low", "TPR mid, FPR low", "TPR high, FPR low"


def test_transition_counts_by_hand():
    counts = dyn.transition_counts(MOVES)
    assert counts.epoch.values.tolist() == [2, 4]
    first, second = (counts.isel(epoch=t) for t in range(2))
    assert [first.sel(source=LL, target=b).item() for b in (HL, LL, ML)] == [2, 1, 1]
    moves = ((HL, HL), (HL, LL), (LL, HL), (ML, ML))
    assert [second.sel(source=a, target=b).item() for a, b in moves] == [1, 1, 1, 1]
    assert counts.sum(["source", "target"]).values.tolist() == [4, 4]


def test_transition_matrix_by_hand():
    matrix = dyn.transition_matrix(dyn.transition_counts(MOVES).sum("epoch"))
    assert matrix.sel(source=LL).sel(target=[LL, ML, HL]).values.tolist() == [0.2, 0.2, 0.6]
    assert matrix.sel(source=HL).sel(target=[LL, ML, HL]).values.tolist() == [0.5, 0, 0.5]


def test_transition_rows_sum_to_one_or_are_nan():
    matrix = dyn.transition_matrix(dyn.transition_counts(MOVES))
    total = matrix.sum("target", skipna=False).values
    assert np.isnan(total).any()
    np.testing.assert_allclose(total[~np.isnan(total)], 1, rtol=1e-15)


def test_transition_to_vulnerable_by_hand():
    # 0 of the 4 start vulnerable and 2 become so; then 1 of the other 2
    got = dyn.transition_to_vulnerable(MOVES)
    assert got.epoch.values.tolist() == [2, 4]
    assert got.values.tolist() == [0.5, 0.5]


def test_transition_to_vulnerable_is_nan_when_all_are():
    assert np.isnan(dyn.transition_to_vulnerable(path_of("VV VV"))).all()


def test_transition_to_vulnerable_equals_the_matrix():
    plane = random_plane(2, 300)
    counts = dyn.transition_counts(plane)
    rest = [state for state in dyn.STATES if state != HL]
    expected = counts.sel(source=rest, target=HL).sum("source") / counts.sel(source=rest).sum(["source", "target"])
    np.testing.assert_allclose(dyn.transition_to_vulnerable(plane), expected, rtol=1e-12)


def test_early_identification_on_a_hand_made_path():
    # finally vulnerable are the first two of four
    early = dyn.early_identification(path_of("---- V-V- -VV- VV--"))
    assert early.recall.values.tolist() == [0, 0.5, 0.5, 1]
    np.testing.assert_array_equal(early.precision, [np.nan, 0.5, 0.5, 1])
    assert early.entered.values.tolist() == [0, 0.5, 1, 1]


def test_early_identification_is_nan_without_finally_vulnerable_samples():
    early = dyn.early_identification(path_of("-- V- --"))
    assert np.isnan(early.recall).all()
    assert np.isnan(early.entered).all()
    np.testing.assert_array_equal(early.precision, [np.nan, 0, np.nan])


@pytest.mark.parametrize(("path", "epoch"), [
    ("---- VVVV VVVV VVVV", 2),
    ("---- VVVV V--- VVVV", 6),  # it falls back in between
    ("---- V--- VV-- VVVV", 6),
    ("---- VVV- VVV- VVVV", 2),  # 3/4 is above 70 %
    ("VVVV VVVV VVVV VVVV", 0),
])  # fmt: skip
def test_epoch_of_recall_is_where_recall_stays(path, epoch):
    assert epoch_of_recall(path_of(path)).item() == epoch


@pytest.mark.parametrize("samples", [10, 147, 294])
def test_recall_of_exactly_seventy_percent_counts_as_reached(samples):
    # 7 of 10; as (7 / 147) / (10 / 147) it divides to a float below 0.7
    tp = np.zeros((3, samples))
    tp[1, :7], tp[2, :10] = HIGH, HIGH
    assert epoch_of_recall(plane_of(tp, np.zeros_like(tp))).item() == 2


def blobs(seed=0, size=40):
    """Three clear groups as one checkpoint, at continuous places."""
    rng = np.random.default_rng(seed)
    centres = np.repeat([[0.1, 0.1], [0.1, 0.9], [0.8, 0.8]], size, axis=0)
    fpr, tpr = (centres + rng.normal(0, 0.05, centres.shape)).T
    return plane_of(tpr[None], fpr[None], models=1)


def test_silhouette_equals_scikit_learn():
    plane = blobs()
    points = np.stack([plane.fpr[0], plane.tpr[0]], 1)
    labels = KMeans(3, n_init=10, random_state=0).fit(points).labels_
    assert dyn.silhouette(plane).item() == pytest.approx(silhouette_score(points, labels), abs=1e-12)


def test_silhouette_of_samples_at_the_same_point_equals_scikit_learn():
    plane = (10 * blobs()[["tpr", "fpr"]]).round() / 10
    plane["n_in"] = "sample", np.full(120, 10)
    points = np.stack([plane.fpr[0], plane.tpr[0]], 1)
    assert len(np.unique(points, axis=0)) < 60
    labels = KMeans(3, n_init=10, random_state=0).fit(points).labels_
    # exact distances: scikit-learn's own leave 1e-9 between equal points
    expected = silhouette_score(cdist(points, points), labels, metric="precomputed")
    assert dyn.silhouette(plane).item() == pytest.approx(expected, abs=1e-12)


def test_silhouette_weights_equal_repeating_samples():
    plane = blobs()
    times = np.random.default_rng(1).integers(0, 4, 120)
    weights = xr.DataArray(times[None].astype(float), dims=("draw", "sample"))
    repeated = plane.isel(sample=np.repeat(np.arange(120), times))
    assert dyn.silhouette(plane, weights).item() == pytest.approx(dyn.silhouette(repeated).item(), abs=1e-12)


def test_silhouette_of_a_collapsed_cloud_is_nan():
    assert np.isnan(dyn.silhouette(plane_of([[3, 3, 3]], [[1, 1, 1]])))


@pytest.mark.parametrize("counts", [(50, 1), (50, 1, 1), (49, 1, 1, 1)])
def test_silhouette_survives_draws_that_miss_a_group(counts):
    tp = np.repeat(np.arange(len(counts)) * 3, counts)[None]
    plane = plane_of(tp, np.zeros_like(tp))
    weights = np.ones((4, tp.size))
    weights[1, counts[0] :] = 0  # one point left
    weights[2, -1] = 0
    weights[3, :-2] = 0
    drawn = dyn.silhouette(plane, xr.DataArray(weights, dims=("draw", "sample")))
    assert drawn.sizes == {"draw": 4}
    assert drawn[0] == pytest.approx(dyn.silhouette(plane).item())
    assert (drawn.fillna(0) <= 1).all()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_integer_weights_equal_repeating_samples(seed):
    plane = random_plane(seed)
    times = np.random.default_rng(seed).integers(0, 4, 30)
    weights = xr.DataArray(times.astype(float), dims="sample")
    repeated = plane.isel(sample=np.repeat(np.arange(30), times))
    for figure in (
        dyn.centre_of_mass,
        dyn.displacement,
        dyn.spatial_entropy,
        dyn.transition_counts,
        dyn.transition_to_vulnerable,
        dyn.early_identification,
        lambda p, w=None: dyn.population_mean(dyn.encoding_speed(p), w),
        lambda p, w=None: dyn.population_mean(dyn.dynamic_vulnerability(p), w),
        lambda p, w=None: dyn.share_of(dyn.vulnerable(p), p.tpr > 0.5, w),
    ):
        xr.testing.assert_allclose(figure(plane, weights), figure(repeated), rtol=1e-12, atol=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_several_weight_draws_equal_one_after_the_other(seed):
    plane = random_plane(seed)
    drawn = np.random.default_rng(seed).integers(0, 4, (3, 30)).astype(float)
    weights = xr.DataArray(drawn, dims=("draw", "sample"))
    for figure in (dyn.displacement, dyn.spatial_entropy, dyn.transition_to_vulnerable, dyn.transition_counts):
        together = figure(plane, weights)
        for draw in range(3):
            alone = figure(plane, weights.isel(draw=draw))
            np.testing.assert_allclose(together.isel(draw=draw), alone, rtol=1e-12, atol=1e-12)


RUN = run_of_four_checkpoints()
PLANES = {rule: vulnerability_plane(RUN, rule) for rule in ("lira:fpr@0.01", "lira:bayes")}
every_metric = pytest.mark.parametrize("name", METRICS)
both_rules = pytest.mark.parametrize("rule", PLANES)


def value(name, plane):
    return METRICS[name].of(plane, None).item()


@both_rules
@every_metric
def test_weights_of_one_equal_no_weights(name, rule):
    ones = xr.DataArray(np.ones((1, 60)), dims=("draw", "sample"))
    got = METRICS[name].of(PLANES[rule], ones)
    assert got.item() == pytest.approx(value(name, PLANES[rule]), rel=1e-12, nan_ok=True)


@both_rules
@every_metric
def test_metrics_do_not_change_with_the_order_of_samples(name, rule):
    order = np.random.default_rng(1).permutation(60)
    plane = vulnerability_plane(RUN.isel(sample=order), rule)
    assert value(name, plane) == pytest.approx(value(name, PLANES[rule]), rel=1e-12, abs=1e-12, nan_ok=True)


@both_rules
@every_metric
def test_metrics_do_not_change_with_the_order_of_models(name, rule):
    order = np.random.default_rng(2).permutation(20)
    plane = vulnerability_plane(RUN.isel(model=order), rule)
    assert value(name, plane) == pytest.approx(value(name, PLANES[rule]), rel=1e-12, abs=1e-12, nan_ok=True)


@every_metric
def test_metrics_do_not_change_with_the_labels(name):
    labels = np.random.default_rng(3).permutation(RUN.label.values)
    plane = vulnerability_plane(RUN.assign(label=("sample", labels)), "lira:fpr@0.01")
    assert value(name, plane) == pytest.approx(value(name, PLANES["lira:fpr@0.01"]), rel=0, abs=0, nan_ok=True)


@both_rules
@every_metric
def test_metrics_of_the_run_above_are_finite(name, rule):
    assert np.isfinite(value(name, PLANES[rule])) or name == "tpr_01pct"  # too few out-scores to tell


@pytest.mark.parametrize(
    "figure",
    [dyn.displacement, dyn.encoding_speed, dyn.signed_speed, dyn.transition_counts, dyn.transition_to_vulnerable,
     dyn.early_identification],
)  # fmt: skip
def test_checkpoints_out_of_order_are_refused_and_one_alone_is_no_error(figure):
    plane = random_plane(0)
    for order, line in (([0, 2, 3, 1], "the epochs are 0, 4, 6, 2: they must increase"), ([0, 0, 1], "0, 0, 2: they")):
        with pytest.raises(UserError, match=line):
            figure(plane.isel(epoch=order))
    assert figure(plane.isel(epoch=[2])).sizes["epoch"] <= 1


def test_options_of_figures_out_of_range_are_named():
    plane = vulnerability_plane(run_of_four_checkpoints(), "lira:fpr@0.01")
    for figure, line in (
        (lambda: dyn.spatial_entropy(plane, bins=0), "bins is 0: it must be a whole number, at least 1"),
        (lambda: dyn.silhouette(plane, clusters=1), "clusters is 1: .* at least 2"),
        (lambda: dyn.silhouette(plane, epoch=3), "epoch 3 is no checkpoint: there are 0, 2, 4, 6"),
        (lambda: dyn.tpr_at_fpr(plane, 0.5), "level 0.5 is not stored: there are 0.001, 0.01, 0.1"),
    ):
        with pytest.raises(UserError, match=line):
            figure()
