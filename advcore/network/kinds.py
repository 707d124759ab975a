"""The kind of a network, from which the search is chosen, by what is in it."""

from __future__ import annotations


def find_kind(
    on_maps: bool, kinked: bool, saturating: bool, pooled: bool, compared: bool = False
) -> str:
    """Return "convolutional", "kinked", "compared", "saturating" or "smooth".

    Parameters
    ----------
    on_maps : bool
        Whether a piecewise linear activation follows maps with several positions, as those of a
        convolution.
    kinked : bool
        Whether any activation is piecewise linear.
    saturating : bool
        Whether any is a sigmoid or tanh.
    pooled : bool
        Whether there is max-pooling.
    compared : bool
        Whether a maximum or minimum of values is taken otherwise, as over logits.
    """
    if on_maps:
        return "convolutional"
    if kinked:
        return "kinked"
    if pooled and not saturating:
        return "convolutional"
    if compared:
        return "compared"
    return "saturating" if saturating else "smooth"
