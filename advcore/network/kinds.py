"""The kind of a network, from which the search is chosen, by what is in it."""

from __future__ import annotations


def find_kind(on_maps: bool, kinked: bool, saturating: bool, pooled: bool) -> str:
    """Return "convolutional", "kinked", "saturating" or "smooth".

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
    """
    if on_maps:
        return "convolutional"
    if kinked:
        return "kinked"
    if saturating:
        return "saturating"
    return "convolutional" if pooled else "smooth"
