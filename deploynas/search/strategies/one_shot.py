"""One-shot search: single paths train the supernet, its weights rank, the best are retrained."""

from __future__ import annotations

from deploynas.search.strategies.ofa import OnceForAll


class OneShot(OnceForAll):
    """Single path one-shot (Guo et al. 2020).

    Uniform paths train the supernet (section 3.2), evolution under the limits goes by its weights
    (section 3.4); of what is found the best few are trained from scratch, and the one that
    validates best is taken.
    """

    name = "one-shot"
    help = "A supernet of uniform single paths, evolution on it, the best three trained."
    home = "one-shot"
    weights = "single-path"
    num_retrained = 3


STRATEGY = OneShot()
