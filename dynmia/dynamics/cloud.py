"""How the cloud of samples moves over the plane: centre of mass, entropy, speed, states, transitions, early warning.

All functions take a plane (:func:`dynmia.attack.plane.vulnerability_plane`). Those that describe the population take
``weights``, a labelled array with dim ``sample`` (and any others, such as ``draw``): how often each sample counts. The
bootstrap is nothing but such weights, so a point estimate and its interval come from the same lines.
"""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import sparse

from ..attack.plane import CUTS, state_of
from ..errors import UserError, bounded
from ..store.run import listed, ordered

Weights = xr.DataArray | None
VULNERABLE = 6  # state 3 * (TPR third) + (FPR third): high TPR, low FPR
STATES = [f"TPR {tpr}, FPR {fpr}" for tpr in ("low", "mid", "high") for fpr in ("low", "mid", "high")]
PLACES = 2048  # of a cloud whose silhouette is exact


def population_mean(values: xr.DataArray, weights: Weights = None) -> xr.DataArray:
    """Weighted mean over samples; the same as ``values.mean("sample")`` without weights."""
    if weights is None:
        return values.mean("sample")
    draws = [dim for dim in weights.dims if dim != "sample"]
    total = xr.apply_ufunc(  # a matrix product: xr.dot would not use BLAS here
        lambda values, weights: values @ weights.T,
        values.astype(float),
        weights,
        input_core_dims=[["sample"], [*draws, "sample"]],
        output_core_dims=[draws],
    )
    return total / weights.sum("sample", skipna=False)


def share_of(part: xr.DataArray, whole: xr.DataArray, weights: Weights = None) -> xr.DataArray:
    """Weighted share of ``whole`` (bool) that is also ``part`` (bool); NaN where ``whole`` is empty."""
    below = population_mean(whole, weights)
    return population_mean(part & whole, weights) / below.where(below > 0)


def centre_of_mass(plane: xr.Dataset, weights: Weights = None) -> xr.Dataset:
    """C(t), the mean place: variables fpr and tpr over epoch."""
    return xr.Dataset({axis: population_mean(plane[axis], weights) for axis in ("fpr", "tpr")})


def displacement(plane: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """||C(t) - C(0)|| x 1000 over epoch, in thousandths of the unit plane; the last is the paper's displacement."""
    centre = centre_of_mass(ordered(plane), weights)
    moved = centre - centre.isel(epoch=0)
    return 1000 * np.hypot(moved.fpr, moved.tpr)


def encoding_speed(plane: xr.Dataset) -> xr.DataArray:
    """v_z(t) = ||s_z(t+k) - s_z(t)|| / k per epoch, (epoch, sample), labelled by the later epoch t + k."""
    plane = ordered(plane)
    return np.hypot(plane.fpr.diff("epoch"), plane.tpr.diff("epoch")) / plane.epoch.diff("epoch")


def signed_speed(plane: xr.Dataset) -> xr.DataArray:
    """d alpha / dt per epoch, (epoch, sample): positive where membership is being encoded, negative where forgotten."""
    plane = ordered(plane)
    return plane.advantage.diff("epoch") / plane.epoch.diff("epoch")


def dynamic_vulnerability(plane: xr.Dataset) -> xr.DataArray:
    """Time average of the advantage of each sample over training, (sample)."""
    return plane.advantage.mean("epoch")


def spatial_entropy(plane: xr.Dataset, weights: Weights = None, bins: int = 11) -> xr.DataArray:
    """H(t) = -sum p log2 p over a ``bins`` x ``bins`` histogram of the plane, in bits, over epoch.

    With about 10 in- and out-models the rates lie on about 11 values, so more than 11 bins resolve nothing new.
    """
    bounded("bins", bins, 1)

    def cell(rate: xr.DataArray) -> np.ndarray:  # 15/22 x 22 is 14.999... in floats
        return np.minimum((rate.transpose("epoch", "sample").values * bins + 1e-9).astype(int), bins - 1)

    cells = cell(plane.tpr) * bins + cell(plane.fpr)  # (epoch, sample)
    samples = plane.sizes["sample"]
    times = xr.ones_like(plane.n_in, float) if weights is None else weights
    others = [dim for dim in times.dims if dim != "sample"]
    matrix = times.transpose("sample", *others).values.reshape(samples, -1)  # (sample, draw)
    total = matrix.sum(0)
    result = np.empty((len(cells), matrix.shape[1]))
    for t, row in enumerate(cells):
        used, index = np.unique(row, return_inverse=True)
        member = sparse.csr_matrix((np.ones(samples), (index, np.arange(samples))), (len(used), samples))
        p = (member @ matrix) / total  # (cell, draw)
        result[t] = -(p * np.log2(np.where(p > 0, p, 1))).sum(0)
    shape = (len(cells), *(times.sizes[dim] for dim in others))
    coords = {"epoch": plane.epoch, **{dim: times[dim] for dim in others if dim in times.coords}}
    return xr.DataArray(result.reshape(shape), coords, ("epoch", *others)).assign_attrs(bins=bins, units="bits")


def states(plane: xr.Dataset, cuts: tuple[float, float] | None = None) -> xr.DataArray:
    """The 3 x 3 state of each sample, 0 ... 8 in the order of ``STATES``, (epoch, sample).

    Without ``cuts`` they are those that the plane carries as ``state``, by its own cuts; with them they are cut anew
    (:func:`dynmia.attack.plane.state_of`). ``plane.assign(state=states(plane, cuts))`` is the plane under other cuts.
    """
    if cuts is None and "state" in plane:
        return plane.state
    cuts = cuts or CUTS
    state = xr.apply_ufunc(state_of, plane.tpr, plane.fpr, kwargs={"cuts": cuts})
    return state.rename("state").assign_attrs(cuts=cuts)


def vulnerable(plane: xr.Dataset) -> xr.DataArray:
    """Whether FPR < 1/3 and TPR > 2/3, bool (epoch, sample)."""
    return states(plane) == VULNERABLE


def transition_counts(plane: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """Samples that go from state ``source`` to state ``target`` between consecutive checkpoints.

    Dims (epoch, source, target), labelled by the later epoch; with weights their sums instead of counts.
    """
    now = states(ordered(plane))
    source, target = xr.DataArray(range(9), dims="source"), xr.DataArray(range(9), dims="target")
    before = now.isel(epoch=slice(None, -1)).assign_coords(epoch=now.epoch[1:])
    moves = (before == source) & (now.isel(epoch=slice(1, None)) == target)
    counts = moves.sum("sample") if weights is None else xr.dot(moves.astype(float), weights, dim="sample")
    return counts.assign_coords(source=STATES, target=STATES)


def transition_matrix(counts: xr.DataArray) -> xr.DataArray:
    """P_ab, rows normalised; NaN in the rows of states that nothing was in. Sum ``counts`` over epoch first to pool."""
    total = counts.sum("target")
    return counts / total.where(total > 0)


def transition_to_vulnerable(plane: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """P(vulnerable at t + k | not vulnerable at t) over epoch, labelled by t + k."""
    now = vulnerable(ordered(plane))
    before = now.isel(epoch=slice(None, -1)).assign_coords(epoch=now.epoch[1:])
    return share_of(now.isel(epoch=slice(1, None)), ~before, weights)


def early_identification(plane: xr.Dataset, weights: Weights = None) -> xr.Dataset:
    """How early the finally vulnerable samples can be told, over epoch.

    Variables: recall, share of the finally vulnerable that are vulnerable at t; precision, share of the vulnerable at t
    that are so at the end; entered, share of the finally vulnerable that have been vulnerable at least once by t.
    """
    now = vulnerable(ordered(plane))
    final = now.isel(epoch=-1, drop=True)
    entered = xr.apply_ufunc(np.maximum.accumulate, now, kwargs={"axis": now.get_axis_num("epoch")})
    pairs = {"recall": (now, final), "precision": (final, now), "entered": (entered, final)}
    return xr.Dataset({name: share_of(*pair, weights) for name, pair in pairs.items()})


def auc(plane: xr.Dataset, weights: Weights = None) -> xr.DataArray:
    """Area under the attack's ROC over all (model, sample) pairs, over epoch.

    Without weights it is the Mann-Whitney statistic. With weights it is that plus both sides' weighted deviations of
    placements, the linear form behind DeLong et al. (1988), which takes all pairs of a sample together.
    """
    exact = plane.place_in.sum("sample") / plane.n_in.sum("sample")
    if weights is None:
        return exact
    inside = population_mean(plane.place_in, weights) / population_mean(plane.n_in, weights)
    outside = population_mean(plane.place_out, weights) / population_mean(plane.n_out, weights)
    return inside + outside - exact


def tpr_at_fpr(plane: xr.Dataset, level: float, weights: Weights = None) -> xr.DataArray:
    """The attack's true-positive rate at the pooled false-positive rate ``level`` (0.001, 0.01 or 0.1), over epoch.

    NaN where the plane has fewer out-scores than one over the level.
    """
    if level not in plane.level.values:
        raise UserError(f"level {level} is not stored: there are {listed(plane.level.values)}.")
    hits = plane.hits.sel(level=level, drop=True).astype(float)
    return population_mean(hits, weights) / population_mean(plane.n_in, weights)


def silhouette(plane: xr.Dataset, weights: Weights = None, clusters: int = 3, epoch: int | None = None) -> xr.DataArray:
    """Mean silhouette (Rousseeuw 1987) of k-means with ``clusters`` centres on the cloud at one checkpoint (the last).

    1 means tight, well separated groups, 0 none. Samples at the same point are taken together with their weight, for
    which a cloud of more than ``PLACES`` points is rounded to fiftieths of its extent; each draw is clustered anew,
    starting from the centres of the whole cloud.
    """
    from sklearn.cluster import KMeans

    bounded("clusters", clusters, 2)
    if epoch is not None and epoch not in plane.epoch.values:
        raise UserError(f"epoch {epoch} is no checkpoint: there are {listed(plane.epoch.values)}.")
    now = plane.isel(epoch=-1) if epoch is None else plane.sel(epoch=epoch)
    places = np.stack([now.fpr.values, now.tpr.values], 1)
    points, index = np.unique(places, axis=0, return_inverse=True)
    if len(points) > PLACES:
        step = np.ptp(places, axis=0).max() / 50
        points, index = np.unique(np.round(places / step) * step, axis=0, return_inverse=True)
    whole = np.bincount(index.ravel(), minlength=len(points)).astype(float)
    start = points
    if len(points) > 1:
        start = KMeans(min(clusters, len(points)), n_init=4, random_state=0).fit(points, None, whole).cluster_centers_
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1)  # (point, point)
    if weights is None:
        return xr.DataArray(_silhouette(points, distance, whole, start))
    drawn = [np.bincount(index.ravel(), row, len(points)) for row in weights.transpose("draw", "sample").values]
    return xr.DataArray([_silhouette(points, distance, weight, start) for weight in drawn], dims="draw")


def _silhouette(points: np.ndarray, distance: np.ndarray, weight: np.ndarray, start: np.ndarray) -> float:
    """Weighted mean silhouette of the points after k-means from ``start``; NaN if fewer than two points are drawn."""
    from sklearn.cluster import KMeans

    used = weight > 0
    points, distance, weight = points[used], distance[np.ix_(used, used)], weight[used]
    if len(points) < 2 or len(start) < 2:
        return np.nan
    if len(points) < len(start):  # fewer distinct points than clusters: each is its own
        start = points
    label = KMeans(len(start), init=start, n_init=1).fit(points, None, weight).labels_
    member = (label[:, None] == np.unique(label)) * weight[:, None]  # (point, cluster)
    label = np.unique(label, return_inverse=True)[1]
    size, reach = member.sum(0), distance @ member  # reach: summed distance to each cluster
    own = np.arange(len(points)), label
    inside = reach[own] / np.maximum(size[label] - 1, 1e-9)  # without the sample itself
    mean = reach / size
    mean[own] = np.inf
    outside = mean.min(1)
    value = np.where(size[label] > 1, (outside - inside) / np.maximum(np.maximum(inside, outside), 1e-300), 0)
    return float((value * weight).sum() / weight.sum())
