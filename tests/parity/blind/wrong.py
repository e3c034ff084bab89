"""A wrong port, made by changing the text of a right one."""

from tests.parity.blind import images, sequences
from tests.parity.pairs import EXAMPLES, Example, seeded
from tests.parity.wrong.case import Wrong, changed

OWN = (
    images.denoiser, images.squeeze, images.separable, images.pyramid,
    sequences.keywords, sequences.mixture, sequences.prenorm, sequences.crossing,
    sequences.counter,
)  # fmt: skip
RIGHT = {**EXAMPLES, **{build.__name__: seeded(build) for build in OWN}}


def build(wrong: Wrong) -> Example:
    """Make the pair from the changed source of its module."""
    example = seeded(changed(RIGHT[wrong.pair], wrong))()
    return example._replace(options={**example.options, **wrong.options})
