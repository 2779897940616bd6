"""Figures that set runs beside each other: their words, colours and curves."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pytest

import dynmia
from dynmia import dynamics
from dynmia.book import plots


@pytest.fixture
def planes(tiny_run):
    """Two planes of the same run that say they are of different studies."""
    _, run = tiny_run
    plane = dynmia.vulnerability_plane(run)
    study = dynmia.study_of(run)

    def like(**changes):
        return plane.assign_attrs(study=json.dumps(study.replace(**changes).to_dict()))

    return like


def test_words_name_only_what_differs(planes):
    sets = {"a": planes(dataset="mnist"), "b": planes(dataset="cifar10")}
    assert plots.labels(sets) == {"a": "MNIST", "b": "CIFAR-10"}
    both = {"a": planes(optimizer="sgd"), "b": planes(optimizer="sam-sgd", rho=0.1)}
    assert plots.labels(both) == {"a": "SGD", "b": "SAM, rho 0.1"}
    pools = {"a": planes(pool_size=None), "b": planes(pool_size=100)}
    assert plots.labels(pools)["a"] == "pool 120"
    assert plots.labels({"a": planes()}) == {"a": "digits"}


def test_a_data_set_has_its_colour_and_other_runs_a_scale(planes):
    sets = {"a": planes(dataset="mnist"), "b": planes(dataset="cifar10")}
    shades = {name: look["color"] for name, look in plots.looks(sets).items()}
    assert shades == {"a": plots.COLOURS["mnist"], "b": plots.COLOURS["cifar10"]}
    scale = plots.looks({"a": planes(pool_size=100), "b": planes(pool_size=110)})
    shades = {look["color"] for look in scale.values()}
    assert len(shades) == 2
    assert not shades & set(plots.COLOURS.values())


def test_curves_and_paths_show_the_values_of_each_run(planes, tiny_run):
    _, run = tiny_run
    sets = {"a": planes(dataset="mnist"), "b": planes(dataset="cifar10")}
    nulls = {"a": list(dynmia.null_planes(run, draws=2))}
    figure = plots.curves(sets, dynamics.displacement, "displacement", nulls)
    lines = [line for line in figure.axes[0].get_lines() if line.get_label() in ("MNIST", "CIFAR-10")]
    for line, plane in zip(lines, sets.values(), strict=True):
        np.testing.assert_allclose(line.get_ydata(), dynamics.displacement(plane))
    assert figure.axes[0].get_ylabel() == "displacement"
    path = plots.paths(sets, nulls)
    x, y = next(line for line in path.axes[0].get_lines() if line.get_label() == "MNIST").get_data()
    np.testing.assert_allclose(x, sets["a"].fpr.mean("sample"))
    np.testing.assert_allclose(y, sets["a"].tpr.mean("sample"))
    plt.close("all")
