"""How numbers are written on a page. What is not known, or not finite, is a dash."""

import math

DASH = "–"
_PREFIXES = ((1e24, "Y"), (1e21, "Z"), (1e18, "E"), (1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def _known(value: float | None) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def fixed(value: float | None, digits: int = 1) -> str:
    """
    >>> fixed(1234.56), fixed(-0.5), fixed(-0.04), fixed(None)
    ('1,234.6', '−0.5', '0.0', '–')
    """
    if not _known(value):
        return DASH
    rounded = round(value, digits) + 0.0  # + 0.0 turns a rounded -0.0 into 0.0
    return f"{rounded:,.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 1) -> str:
    """
    >>> signed(14.66), signed(-2), signed(0.0)
    ('+14.7', '−2.0', '0.0')
    """
    text = fixed(value, digits)
    return f"+{text}" if _known(value) and round(value, digits) > 0 else text


def percent(share: float | None, digits: int = 1) -> str:
    """A share of one in percent, without the sign.

    >>> percent(0.853)
    '85.3'
    """
    return fixed(100 * share, digits) if _known(share) else DASH


def count(value: float | None) -> str:
    """
    >>> count(132288)
    '132,288'
    """
    return fixed(value, 0)


def compact(value: float | None, unit: str = "") -> str:
    """Three significant digits with an SI prefix.

    >>> compact(9_430_000, "FLOP"), compact(512), compact(0.0123, "s")
    ('9.43 MFLOP', '512', '0.0123 s')
    """
    if not _known(value):
        return DASH
    # Scale by what the value rounds to, so that 999,999 is 1 M and not 1e+03 k.
    rounded = float(f"{value:.3g}")
    scale, prefix = next(((s, p) for s, p in _PREFIXES if abs(rounded) >= s), (1.0, ""))
    scaled = rounded / scale
    text = f"{scaled:.3g}".replace("e-0", "e-").replace("-", "−")
    return f"{text} {prefix}{unit}".rstrip()


def usd(value: float | None) -> str:
    """
    >>> usd(12.5), usd(0.00042), usd(0)
    ('$12.50', '$0.00042', '$0')
    """
    if not _known(value):
        return DASH
    if value == 0:
        return "$0"
    return f"${value:,.2f}" if abs(value) >= 0.1 else f"${float(f'{value:.2g}'):.10f}".rstrip("0")


def times(value: float | None) -> str:
    """
    >>> times(13.24), times(0.5)
    ('13.2×', '0.50×')
    """
    if not _known(value):
        return DASH
    return f"{fixed(value, 1 if abs(value) >= 2 else 2)}×"
