import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from dynmia.shadow.step import logit_scaled_confidence


def phi_60_digits(logits, label):
    with mpmath.workdps(60):
        others = [mpmath.exp(mpmath.mpf(float(x))) for k, x in enumerate(logits) if k != label]
        return mpmath.mpf(float(logits[label])) - mpmath.log(mpmath.fsum(others))


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("gap", [-700, -88.7, -20, -1e-3, 0, 1e-3, 20, 88.7, 700])
def test_phi_equals_60_digit_arithmetic(classes, gap):
    rng = np.random.default_rng(classes)
    logits = torch.tensor(rng.normal(0, 1, (20, classes)), dtype=torch.float32)
    labels = torch.tensor(rng.integers(0, classes, 20))
    logits[torch.arange(20), labels] += gap
    got = logit_scaled_confidence(logits, labels)
    error = [abs(phi_60_digits(row, label) - float(phi)) for row, label, phi in zip(logits, labels.tolist(), got)]
    # a few roundings of numbers up to 710, each half of 2^-43 = 1.1e-13
    assert max(error) <= 5e-13


def test_phi_of_two_classes_is_their_difference():
    logits = torch.tensor([[350.0, -350.0], [-350.0, 350.0], [0.25, 0.5]])
    assert logit_scaled_confidence(logits, torch.zeros(3, dtype=torch.int64)).tolist() == [700.0, -700.0, -0.25]


def test_phi_of_equal_logits_is_minus_log_of_the_other_classes():
    got = logit_scaled_confidence(torch.zeros(3, 10), torch.tensor([0, 4, 9]))
    np.testing.assert_allclose(got, -np.log(9), rtol=1e-15)


def test_phi_is_float64_and_finite_where_float32_probabilities_saturate():
    logits = torch.tensor([[20.0, 0.0, 0.0]])
    assert torch.softmax(logits, 1)[0, 0] == 1  # 1 - p = 4e-9 is below the spacing of float32 at 1
    phi = logit_scaled_confidence(logits, torch.tensor([0]))
    assert phi.dtype == torch.float64
    np.testing.assert_allclose(phi, 20 - np.log(2), rtol=1e-15)


@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(-300, 300), classes=st.sampled_from([2, 10, 100]))
def test_phi_does_not_change_with_a_shift_of_all_logits(seed, shift, classes):
    rng = np.random.default_rng(seed)
    # multiples of 1/64 up to 1,024: the shifted float32 logits are exact
    logits = torch.tensor(rng.integers(-(2**14), 2**14, (5, classes)) / 64, dtype=torch.float32)
    labels = torch.tensor(rng.integers(0, classes, 5))
    got, moved = logit_scaled_confidence(logits, labels), logit_scaled_confidence(logits + shift, labels)
    np.testing.assert_allclose(moved, got, rtol=0, atol=5e-13)


@given(seed=st.integers(0, 2**32 - 1))
def test_phi_does_not_change_with_the_order_of_the_other_classes(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 20, (1, 10))
    order = rng.permutation(10)
    label = int(rng.integers(10))
    place = int(np.flatnonzero(order == label)[0])
    got = logit_scaled_confidence(torch.tensor(logits), torch.tensor([label]))
    permuted = logit_scaled_confidence(torch.tensor(logits[:, order]), torch.tensor([place]))
    np.testing.assert_allclose(permuted, got, rtol=0, atol=1e-13)  # a few roundings of numbers up to 100
