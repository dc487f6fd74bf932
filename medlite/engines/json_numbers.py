"""GBNF expressions for JSON numbers: within bounds, and short enough that a double holds them."""

MOST_DIGITS = 15  # a double holds every integer of 15 digits


def number_expression(*, negative: bool) -> str:
    """A JSON number of at most 15 digits before and after the point, and an exponent of at most two."""
    sign = '"-"? ' if negative else ""
    return (
        f'{sign}( "0" | [1-9] [0-9]{{0,{MOST_DIGITS - 1}}} ) ( "." [0-9]{{1,{MOST_DIGITS}}} )? '
        "( [eE] [-+]? [0-9]{1,2} )?"
    )


def integer_between(low: int | None, high: int | None) -> str:
    """An integer from `low` to `high`, both included, without leading zeros; None: 15 digits."""
    most = 10**MOST_DIGITS - 1
    low, high = -most if low is None else low, most if high is None else high
    options = []
    if low < 0:
        options += [f'"-" {digits}' for digits in _digits(max(1, -high), -low)]
    if high >= 0:
        options += _digits(max(0, low), high)
    return options[0] if len(options) == 1 else f"( {' | '.join(options)} )"


def _digits(low: int, high: int) -> list[str]:
    """Alternatives for 0 <= low..high: one group for each number of digits, whole groups together."""
    options: list[str] = []
    whole: list[int] = []  # lengths whose every number is meant
    for length in range(len(str(low)), len(str(high)) + 1):
        first, last = (0 if length == 1 else 10 ** (length - 1)), 10**length - 1
        if length > 1 and low <= first and high >= last:
            whole.append(length)
        else:
            options += _same_length(str(max(low, first)), str(min(high, last)))
    if whole:
        options.append(f"[1-9] [0-9]{{{whole[0] - 1},{whole[-1] - 1}}}")
    return options


def _same_length(low: str, high: str) -> list[str]:
    """Alternatives for the numbers from `low` to `high`, which have equally many digits."""
    n = len(low)
    if low == high:
        return [f'"{low}"']
    if set(low) <= {"0"} and set(high) <= {"9"}:
        return [f"[0-9]{{{n}}}" if n > 1 else "[0-9]"]
    if n == 1:
        return [f"[{low}-{high}]"]
    if low[0] == high[0]:
        return [f'"{low[0]}" {rest}' for rest in _same_length(low[1:], high[1:])]
    options, first, last = [], int(low[0]), int(high[0])
    if set(low[1:]) != {"0"}:
        options += [f'"{first}" {rest}' for rest in _same_length(low[1:], "9" * (n - 1))]
        first += 1
    if set(high[1:]) != {"9"}:
        options += [f'"{last}" {rest}' for rest in _same_length("0" * (n - 1), high[1:])]
        last -= 1
    if first <= last:
        options.append(f"[{first}-{last}] [0-9]{{{n - 1}}}")
    return options
