"""Subsets in an order in which each differs from the last by one member."""

from collections.abc import Iterator


def gray_subsets(count: int) -> Iterator[tuple[int, tuple[int, ...]]]:
    """(the member that came or went, the members) for every non-empty subset of `count` things, members ascending.

    The binary-reflected code (Gray, US patent 2,632,058): the n-th subset is n XOR n/2.
    """
    for number in range(1, 1 << count):
        code = number ^ (number >> 1)
        changed = (number & -number).bit_length() - 1
        yield changed, tuple(member for member in range(count) if code >> member & 1)
