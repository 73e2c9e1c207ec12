"""How numbers are printed, by hand; and that none is printed as another one, or stops the program."""

import math
import re

from hypothesis import given, settings, strategies as st
import numpy as np
import pytest

from hydra_jax.formats import digits, number, signed


@pytest.mark.parametrize(
  'value, expected',
  [
    (0, '0'),
    (-0.0, '0'),
    (0.9783, '0.9783'),
    (0.99996, '1.000'),
    (1.0, '1.000'),
    (-1.25388, '-1.254'),
    (12.3456, '12.35'),
    (9.9996, '10.00'),
    (0.012345678, '0.01235'),
    (0.0009123, '0.0009123'),
    (0.0001, '0.0001000'),
    (0.0000912, '9.120e-5'),
    (1e-12, '1.000e-12'),
    (5e-324, '4.941e-324'),
    (500, '500'),
    (7850, '7850'),
    (7850.4, '7850'),
    (9999.7, '10.00k'),
    (35211, '35.21k'),
    (999_999, '1.000M'),
    (1_234_567, '1.235M'),
    (-5e9, '-5.000G'),
    (1e12, '1.000e12'),
    (1.5e20, '1.500e20'),
    (1.7e308, '1.700e308'),
    (math.nan, 'nan'),
    (math.inf, 'inf'),
    (-math.inf, '-inf'),
    (np.float32(0.25), '0.2500'),
    (np.int64(12), '12'),
  ],
)
def test_numbers_of_every_size(value, expected):
  assert digits(value) == expected


@pytest.mark.parametrize(
  'mean, error, expected',
  [
    (0.00091234, 0.0000213, '0.000912 ± 0.000021'),
    (0.9783, 0.0021, '0.9783 ± 0.0021'),
    (1.1, 0.0577, '1.100 ± 0.058'),
    (9.99, 0.0996, '9.99 ± 0.10'),
    (14.8, 13.6, '15 ± 14'),
    (123.4, 20.1, '123 ± 20'),
    (-0.0012, 0.34, '0.00 ± 0.34'),
    (12345, 460, '12.34k ± 0.46k'),
    (1e20, 3e18, '1.000e20 ± 0.030e20'),
    (1e-7, 2e-9, '1.000e-7 ± 0.020e-7'),
    (2.0, 0.0, '2.000 ± 0'),
    (0.0, 0.0, '0 ± 0'),
    (1.1, 1e-17, '1.100 ± 1.0e-17'),
    (35211, math.nan, '35.21k'),
    (math.nan, 0.1, 'nan ± 0.10'),
    (math.inf, math.nan, 'inf'),
  ],
)
def test_means_and_their_errors_end_at_the_same_decimal(mean, error, expected):
  assert number(mean, error) == expected


def test_signs():
  assert [signed(v, 3) for v in (0.01234, -2.0, 0)] == ['+0.0123', '-2.00', '0']


def read(text):
  found = re.fullmatch(r'(-?[\d.]+)(?:e(-?\d+)|([kMG]))?', text)
  return float(f'{found[1]}e{found[2] or {"k": 3, "M": 6, "G": 9, None: 0}[found[3]]}')


FLOATS = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300, allow_subnormal=False)


@given(FLOATS)
@settings(max_examples=300, deadline=None)
def test_what_is_printed_is_the_number(value):
  assert read(digits(value)) == pytest.approx(value, rel=5.1e-4, abs=0)


@given(FLOATS, st.floats(1e-300, 1e300))
@settings(max_examples=300, deadline=None)
def test_what_is_printed_is_the_mean_and_its_error(mean, error):
  shown, behind = map(read, number(mean, error).split(' ± '))
  assert shown == pytest.approx(mean, rel=5.1e-4, abs=0.051 * error)
  # Where the mean is in units, an error under a millionth of it stands by itself.
  assert behind == pytest.approx(error, rel=0.051, abs=0)
