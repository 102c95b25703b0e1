"""The Gaussian process over architectures: what it learns, how sure it is, what it proposes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from deploynas import spaces
from deploynas.profile.latency_model import kendall_tau
from deploynas.search.process import (
    GaussianProcess,
    Kernel,
    Screen,
    Views,
    default_kernel,
)

KERNEL = Kernel((6.0, 12.0, 4.0), (0.5, 0.25, 0.25), 1e-4, 0.02)


@pytest.fixture(scope="module")
def space():
    return spaces.space("nasbench201")


@pytest.fixture(scope="module")
def views(space):
    return Views(space)


def accuracies(space, archs):
    """By size, by how many edges are skips, and by the last edge."""
    skips = (archs[:, 1:] == 1).sum(axis=1)
    size = np.log(space.macs(archs))
    return 0.3 + 0.1 * (size - 16) - 0.01 * skips**2 + 0.03 * (archs[:, 6] == 3)


def test_what_is_seen(space, views):
    row = space.as_rows([[0, 0, 1, 1, 4, 4, 4]])
    one_hot, counts, sizes = views(row)
    assert one_hot.sum() == 7
    assert one_hot[0, 1 + 5 * 5 + 4] == 1  # the last edge
    # the resolution stands alone; all edges offer the same operations
    assert counts.tolist() == [[1, 1, 2, 0, 0, 3]]
    assert sizes[0, 0] == pytest.approx(
        np.log1p(space.macs(space.as_rows([[0, 0, 1, 1, 4, 4, 4]]))[0])
    )


def test_choices_of_other_options_are_counted_apart():
    space = spaces.space("mobile-small", resolutions=[20, 28])
    _, counts, _ = Views(space)(space.smallest())
    assert counts.sum() == len(space.choices)


def test_it_goes_through_what_it_was_fitted_to(space, views):
    archs = space.sample_networks(40, np.random.default_rng(0))
    found = accuracies(space, archs)
    process = GaussianProcess(views, archs, found, KERNEL)
    np.testing.assert_allclose(process.predict(archs), found, atol=2e-3)


def test_its_mean_and_deviation_are_those_of_the_normal_equations(space, views):
    """Rasmussen and Williams 2006, equations 2.25 and 2.26, by a plain inverse."""
    rng = np.random.default_rng(0)
    archs, new = space.sample_networks(12, rng), space.sample_networks(5, rng)
    found = accuracies(space, archs)
    process = GaussianProcess(views, archs, found, KERNEL)

    def seen(rows):
        one_hot, counts, sizes = views(rows)
        own = views(archs)[2]
        return one_hot, counts, (sizes - own.mean(axis=0)) / (own.std(axis=0) + 1e-9)

    def covariance(a, b):
        total = 0.0
        for x, y, length, weight in zip(
            seen(a), seen(b), KERNEL.lengths, KERNEL.weights, strict=True
        ):
            squared = ((x[:, None] - y[None]) ** 2).sum(axis=2)
            total = total + weight * np.exp(-squared / length)
        return total

    ceiling = found.max() + KERNEL.gap
    values = -np.log(ceiling - found)
    inverse = np.linalg.inv(covariance(archs, archs) + KERNEL.noise * np.eye(12))
    mean = values.mean() + covariance(new, archs) @ inverse @ (values - values.mean())
    np.testing.assert_allclose(process.predict(new), ceiling - np.exp(-mean), atol=1e-8)
    joint = process.joint(new)
    np.testing.assert_allclose(joint.mean, mean, atol=1e-8)
    cross = covariance(new, archs)
    left = 1 - np.einsum("ij,jk,ik->i", cross, inverse, cross)
    scale = np.sqrt((values - values.mean()) @ inverse @ (values - values.mean()) / 12)
    expected = int((mean + 2 * scale * np.sqrt(left)).argmax())
    assert joint.most_promising(1, 2.0) == [expected]


def test_one_that_is_taken_makes_its_neighbours_less_promising(space, views):
    """Of equal means the next is the one that is least like what was taken."""
    archs = space.sample_networks(30, np.random.default_rng(0))
    process = GaussianProcess(views, archs, np.full(30, 0.5), KERNEL)
    first = np.array([0, 4, 4, 4, 0, 1, 2])
    twin, other = first.copy(), np.array([0, 1, 0, 1, 3, 3, 3])
    twin[1] = 3
    rows = space.as_rows([first, twin, other])
    joint = process.joint(rows)
    joint.mean[:] = [1e-30, 0.0, 0.0]  # far below the deviation, but for ties
    order = joint.most_promising(3)
    assert order[1] != {0: 1, 1: 0}.get(order[0])


def test_the_likeliest_kernel_sees_what_decides(space, views):
    rng = np.random.default_rng(0)
    archs, new = space.sample_networks(80, rng), space.sample_networks(200, rng)
    tau = {}
    for name, weights in (("choices", (1.0, 0.0, 0.0)), ("likeliest", None)):
        kernel = None if weights is None else replace(default_kernel(views), weights=weights)
        process = GaussianProcess(views, archs, accuracies(space, archs), kernel)
        tau[name] = kendall_tau(process.predict(new), accuracies(space, new))
    assert tau["likeliest"] > 0.85
    assert tau["likeliest"] > tau["choices"]
    assert process.kernel.weights[0] < 1


def test_equal_accuracies_and_few_pairs(space, views):
    archs = space.sample_networks(10, np.random.default_rng(0))
    process = GaussianProcess(views, archs, np.full(10, 0.5))
    np.testing.assert_allclose(process.predict(archs), 0.5)


def test_a_screen_keeps_its_process_while_little_is_new(space):
    rng = np.random.default_rng(0)
    archs = space.sample_networks(60, rng)
    found = accuracies(space, archs)
    screen = Screen(space)
    first = screen.process(archs[:40], found[:40])
    assert screen.process(archs[:41], found[:41]) is first
    second = screen.process(archs[:50], found[:50])
    assert second is not first
    assert second.kernel is first.kernel
    assert screen.process(archs, found).kernel is not first.kernel
    assert screen.best_of(archs[:5], archs[:9], found[:9]) == 0  # too few to say
