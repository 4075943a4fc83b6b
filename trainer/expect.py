"""Refusals of values that make no sense, in the words that all of them share."""


def expect(is_met: bool, wanted: str, **named: object) -> None:
    """Refuse a value by its name.

    A comparison with NaN is never met, so it is refused too.

    Raises:
        ValueError: `NAME is VALUE, expected WANTED`, if the condition is not met.
    """
    if not is_met:
        told = " and ".join(f"{name} is {value}" for name, value in named.items())
        raise ValueError(f"{told}, expected {wanted}")
