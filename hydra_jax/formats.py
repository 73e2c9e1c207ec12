"""How numbers are printed: in tables, figures and progress lines."""

from decimal import Decimal
import math

SIGNIFICANT = 4
# A mean that would need more digits to end at the decimal of its error is printed by itself.
MOST_SIGNIFICANT = 7
UNITS = {9: 'G', 6: 'M', 4: 'k'}


def digits(value: float, significant: int = SIGNIFICANT) -> str:
  """A number of any size, with the given number of significant digits.

  Numbers below 0.0001 and from 1e12 on have a power of ten, numbers from 10,000 on have a unit. Whole numbers from 10
  to 9,999 have no decimals. NaN and the infinities are `nan`, `inf` and `-inf`.

  Example:
    >>> digits(35213.0), digits(0.97825), digits(250.0), digits(1.2341e-7)
    ('35.21k', '0.9782', '250', '1.234e-7')
  """
  if not math.isfinite(value) or value == 0:
    return f'{value:.0f}'.replace('-0', '0')
  exponent, unit = _unit(value, significant)
  if 10 <= abs(value) < 1e4 and value == int(value):
    return f'{value:.0f}'
  return _fixed(value, max(0, significant - 1 - _place(value, significant) + exponent), exponent) + unit


def number(mean: float, error: float = math.nan) -> str:
  """A mean ± its standard error, or the mean alone where the error is NaN.

  The error has two significant digits, and the mean ends at the same decimal. Where the error is 0 or less than a
  millionth of the mean, both are printed by themselves.

  Example:
    >>> number(12345.6, 456.0)
    '12.35k ± 0.46k'
  """
  if math.isnan(error):
    return digits(mean)
  place, size = _place(error, 2) - 1, max(abs(mean), error)
  if not (math.isfinite(mean) and math.isfinite(error)) or not 0 < error or _place(size, 2) - place >= MOST_SIGNIFICANT:
    return f'{digits(mean)} ± {digits(error, 2)}'
  exponent, unit = _unit(size, 2)
  decimals = max(0, exponent - place)
  return f'{_fixed(mean, decimals, exponent)}{unit} ± {_fixed(error, decimals, exponent)}{unit}'


def signed(value: float, significant: int = SIGNIFICANT) -> str:
  """As `digits`, with a sign, for differences.

  Example:
    >>> signed(0.25)
    '+0.2500'
  """
  return ('+' if value > 0 else '') + digits(value, significant)


def _place(value: float, significant: int) -> int:
  """The power of ten of the first digit, after rounding: 1 for 12.3, and for 9.9999 with 4 digits."""
  return int(f'{value:.{significant - 1}e}'.partition('e')[2]) if value and math.isfinite(value) else 0


def _unit(value: float, significant: int) -> tuple[int, str]:
  """The power of ten that a number is divided by, and the unit that is written after it."""
  place = _place(value, significant)
  if value and not -4 <= place < 12:
    return place, f'e{place}'
  return next(((3 if unit == 'k' else power, unit) for power, unit in UNITS.items() if place >= power), (0, ''))


def _fixed(value: float, decimals: int, exponent: int) -> str:
  """The number divided by a power of ten, in decimals, without a sign where all of them are 0."""
  text = f'{Decimal(float(value)).scaleb(-exponent):.{decimals}f}'
  return text.lstrip('-') if not text.strip('-0.') else text
