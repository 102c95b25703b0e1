"""What of a supernet is trained when: schedules as data.

*sandwich*: everything elastic from the first step, the largest subnet teaching the others of the
same step (Yu and Huang 2019, "Universally slimmable networks", sections 3.2 and 3.3).
*progressive*: progressive shrinking as published (Cai et al. 2020, section 3.3 and appendix A):
the largest network alone, then elastic kernel size, depth and width beside it, channels sorted
by importance before each width phase, the trained largest network teaching every subnet. Shares
and relative rates are those of its 180 + 120 + 25 + 120 + 25 + 120 epochs.
*single-path*: one uniformly drawn path a step (Guo et al. 2020, "Single path one-shot neural
architecture search with uniform sampling", section 3.2).
"""

from __future__ import annotations

from typing import Literal

from deploynas.artifacts import Record


class Phase(Record):
    """A part of a training with a learning-rate cosine of its own.

    Attributes:
        share: Of the training's steps.
        rate: Of the recipe's peak learning rate.
        kernel_sizes, depths, expand_ratios: How many options are open, the largest first.
        num_random: Random subnets a step, whose gradients add up.
        ends: Whether the largest and the smallest subnet are trained at every step as well.
        teacher: Whose soft predictions the subnets learn from: none's, the step's own largest
            subnet's, or those of the largest network as the first phase left it.
        sort_channels: Whether the middle channels are sorted by importance at the start.
    """

    name: str
    share: float
    rate: float
    kernel_sizes: int
    depths: int
    expand_ratios: int
    num_random: int
    ends: bool
    teacher: Literal["none", "in-place", "largest"]
    sort_channels: bool = False


def _phase(
    name: str, share: float, rate: float, kernel_sizes: int, depths: int, expand_ratios: int,
    num_random: int, *, sort_channels: bool = False,
) -> Phase:  # fmt: skip
    return Phase(
        name=name, share=share, rate=rate, kernel_sizes=kernel_sizes, depths=depths,
        expand_ratios=expand_ratios, num_random=num_random, ends=False,
        teacher="largest" if num_random else "none", sort_channels=sort_channels,
    )  # fmt: skip


ALL = 99
SCHEDULES: dict[str, tuple[Phase, ...]] = {
    "sandwich": (
        Phase(
            name="sandwich", share=1.0, rate=1.0, kernel_sizes=ALL, depths=ALL,
            expand_ratios=ALL, num_random=1, ends=True, teacher="in-place",
        ),
    ),
    "single-path": (
        Phase(
            name="single path", share=1.0, rate=1.0, kernel_sizes=ALL, depths=ALL,
            expand_ratios=ALL, num_random=1, ends=False, teacher="none",
        ),
    ),
    "progressive": (
        #                        of 590  rate    kernels depths ratios subnets
        _phase("largest network", 180 / 590, 1.00, 1, 1, 1, 0),
        _phase("kernel size", 120 / 590, 0.37, ALL, 1, 1, 1),
        _phase("depth 1", 25 / 590, 0.03, ALL, 2, 1, 2),
        _phase("depth 2", 120 / 590, 0.09, ALL, ALL, 1, 2),
        _phase("width 1", 25 / 590, 0.03, ALL, ALL, 2, 4, sort_channels=True),
        _phase("width 2", 120 / 590, 0.09, ALL, ALL, ALL, 4, sort_channels=True),
    ),
}  # fmt: skip
