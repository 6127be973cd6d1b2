"""A short run of the mutation fuzzer; the long one is ``python -m tests.fuzz.qcow2_mutations``."""

import pytest

from tests.fuzz.qcow2_mutations import SHAPES, base_image, run_seed
from tests.image.qcow2.support import Memory
from wirt.image.base import OpenOptions
from wirt.image.formats.qcow2 import FORMAT


@pytest.mark.parametrize("block", range(6))
def test_mutated_images_raise_nothing_but_image_errors(block):
    for seed in range(block * 500, block * 500 + 500):
        try:
            run_seed(seed)
        except Exception as error:
            raise AssertionError(f"seed {seed}") from error


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_the_unmutated_images_are_clean(index):
    image = FORMAT.open(Memory(base_image(index)), OpenOptions())
    result = image.check()
    assert (result.corruptions, result.leaks) == (0, 0), result.messages
