"""Owns random numbers that follow from numbers such as seed, step and purpose, and from nothing else."""

import numpy as np
import torch


def draw_generator(*numbers: int) -> torch.Generator:
    """A generator on the CPU that is seeded by all the numbers, each from 0 to 2^64 - 1; no global state is touched.

    Their order and how many they are count too: (1,), (1, 0) and (0, 1) give three generators. Raises ValueError for
    a number out of that range.

    >>> torch.equal(torch.rand(3, generator=draw_generator(7, 1)), torch.rand(3, generator=draw_generator(7, 1)))
    True
    """
    if any(not 0 <= number < 2**64 for number in numbers):
        raise ValueError(f"a generator is seeded by numbers from 0 to 2^64 - 1, not by {numbers}")
    # A seed sequence takes (1,) for (1, 0), and (2^32,) for (0, 1): hence the length and two words for each number.
    words = np.array([len(numbers), *numbers], np.uint64).view(np.uint32)
    (seed,) = np.random.SeedSequence(words).generate_state(1, np.uint32)  # torch's generator takes 32 bits of it
    return torch.Generator().manual_seed(int(seed))
