"""The numbers that draw an answer's tokens. Knows the seed and the places, nothing else."""

import numpy as np

_AT_ONCE = 64  # a generator costs 10 us to set up, whatever is then read from it
_WORDS = 4  # of 64 bits, that one step of Philox's counter makes


class Chance:
    """A number in [0, 1) for each place of an answer.

    It depends on the seed and on the place alone, so that a seed gives the same answer whatever
    else is in the batch and however often the sequence is computed again.
    """

    __slots__ = ("_first", "_key", "_numbers")

    def __init__(self, seed: int) -> None:
        self._key = seed % (1 << 64)  # a seed may be any whole number, and negative too
        self._first = 0
        self._numbers: list[float] = []

    def at(self, place: int) -> float:
        """The first word that Philox makes of the counter `place`, as a fraction."""
        if not 0 <= place - self._first < len(self._numbers):
            self._first = place
            generator = np.random.Philox(key=self._key, counter=place)
            bits = generator.random_raw(_AT_ONCE * _WORDS)[::_WORDS]
            # 52 bits: number * total is always below total.
            self._numbers = ((bits >> np.uint64(12)) * 2.0**-52).tolist()
        return self._numbers[place - self._first]
