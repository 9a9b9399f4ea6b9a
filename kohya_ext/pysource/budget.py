"""What following a checkout's source may take: one budget for time, memory and the size of any single value.

The source is whatever lies in the folder. It may ask for `"a" * 10**10`, for lists that double in a loop, or for a list
that holds itself ten times, ten levels deep. Everything is therefore weighed before it is made or looked through, and
all of it is paid from one account. A value that would be too large is unknown; an empty account ends the reading.
"""

from __future__ import annotations

from typing import Any

from kohya_ext.pysource.parsing import tokens_in
from kohya_ext.pysource.values import MOST_BITS, MOST_SIZE, BudgetExceeded, Value, known, weight

WORK = 400_000  # expressions, statements and rounds of loops; the largest tab of any release takes 20,000
CELLS_A_STEP = 8  # characters or items looked through in the time of one expression
MOST_SOURCE = 400_000  # tokens of all modules together; the largest tab of any release takes a quarter of it


class Budget:
    """The account of one evaluation. Every method that pays raises BudgetExceeded when nothing is left."""

    def __init__(self) -> None:
        self.spent = 0
        self.tokens = 0

    def step(self, count: int = 1) -> None:
        """Pay for expressions, statements or rounds."""
        self.spent += count
        if self.spent > WORK:
            raise BudgetExceeded

    def read(self, source: str) -> None:
        """Pay for a module that is going to be parsed."""
        self.tokens += tokens_in(source)
        if self.tokens > MOST_SOURCE:
            raise BudgetExceeded

    def made(self, size: int) -> bool:
        """Pay for a string or container of `size`; False when it is too large to be made at all."""
        if size > MOST_SIZE:
            return False
        self.step(size // CELLS_A_STEP)
        return True

    def known(self, *values: Value) -> bool:
        """Whether all `values` are plain Python all the way down, and of a size that can be worked with."""
        return self.small(*values) and all(known(value) for value in values)

    def small(self, *values: Value) -> bool:
        """Whether `values`, written out, are small enough to be compared, copied or handed to a function."""
        total = sum(weight(value) for value in values)
        self.step(min(total, MOST_SIZE) // CELLS_A_STEP)
        return total <= MOST_SIZE

    def same(self, one: Value, other: Value) -> bool:
        """Whether both are equal; values that are too large to be compared are only equal to themselves."""
        return one is other or (self.small(one, other) and bool(one == other))

    def numbers(self, *values: Value) -> bool:
        """Whether the numbers among `values` are short enough to be multiplied or divided."""
        return all(not isinstance(value, int) or value.bit_length() <= MOST_BITS for value in values)


def joined_size(separator: str, items: list[Any]) -> int:
    """The length of `separator.join(items)`; more than any string may have when something else is among them."""
    if not all(isinstance(item, str) for item in items):
        return MOST_SIZE + 1
    return sum(map(len, items)) + len(separator) * max(0, len(items) - 1)


def replaced_size(text: str, old: str, new: str) -> int:
    """An upper bound of the length of `text.replace(old, new)`."""
    return len(text) + text.count(old) * max(0, len(new) - len(old))
