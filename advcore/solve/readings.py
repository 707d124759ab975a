"""What was found out about a model, kept while its module lives, for the next call with it."""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..network import Network, Unsupported
from ..oracles import TorchOracle
from ..oracles.module_of import ModuleOf
from ..oracles.module_state import Copies, ModuleState, NoState

MOST_READINGS = 4
"""Readings of a module that are kept: those of other image shapes and options."""


@dataclass
class Reading:
    """What was found out about a model on the CPU.

    Nothing here refers to the module, which would never be freed otherwise.

    Attributes
    ----------
    key : tuple
        Image shape, options, wrapper and threads that it is true for.
    state : ModuleState
    oracle : TorchOracle, or None
        What the trial forwards have found, without the model. None: nothing was tried.
    copies : Copies, or None
        The weights for which the rest is true; None: they are too large.
    graph : torch.fx.GraphModule, or None
        The operations that the native network was made of, over the module's own tensors.
    lowered : tuple of Network or None and str, or None
        The native network, or None with the reason why there is none. None: not tried.
    noises : dict
        Noise of the logits, by the images that it was measured on.
    """

    key: tuple[Any, ...]
    state: ModuleState
    oracle: TorchOracle | None = None
    copies: Copies | None = None
    graph: Any = None
    lowered: tuple[Network | None, str] | None = None
    noises: dict[tuple[Any, ...], float] = field(default_factory=dict)

    def holds(self, graph: Any) -> bool:
        """Whether all tensors of a graph, where there is one, belong to the module."""
        if graph is None:
            return True
        names = [node.target for node in graph.graph.nodes if node.op == "get_attr"]
        return self.state.holds([getattr(graph, name) for name in names])


class Readings:
    """The readings of all modules that live. Threads may share it.

    A reading is used for a module that is built as before, from the same tensors. Its network and
    noise are used while all weights are as before, bit for bit.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a module may be freed while it is held
        self._kept: dict[int, tuple[weakref.ref[Any], list[Reading]]] = {}

    def find(self, found: ModuleOf, key: tuple[Any, ...]) -> Reading | None:
        """The reading of a model, a new one where none is kept; None where none can be.

        That of a module with other weights than before has no network and no noise.
        """
        if found.module is None:
            return None
        try:
            state = ModuleState(found.module)
        except NoState:
            return None
        key = (*key, found.note, sys.modules["torch"].get_num_threads())
        with self._lock:
            entry = self._kept.get(id(found.inner))
            readings = entry[1] if entry is not None and entry[0]() is found.inner else []
            reading = next((each for each in readings if each.key == key), None)
        if reading is None or not reading.state.is_built_as(state):
            return Reading(key, state)
        if reading.copies is None or not reading.copies.equal(state.tensors):
            copied = Reading(key, state, reading.oracle, graph=reading.graph)
            if reading.lowered is not None and reading.lowered[0] is None:
                copied.lowered = reading.lowered  # what has no native form has none
            self.keep(found, copied)
            return copied
        return reading

    def forget(self, found: ModuleOf) -> None:
        """Drop the readings of a model."""
        with self._lock:
            self._kept.pop(id(found.inner), None)

    def keep(self, found: ModuleOf, reading: Reading) -> None:
        """Keep a reading, with copies of the weights, until the module is freed."""
        if reading.copies is None and Copies.fit(reading.state.tensors):
            reading.copies = Copies(reading.state.tensors)
        number = id(found.inner)

        def freed(reference: Any) -> None:
            with self._lock:
                if number in self._kept and self._kept[number][0] is reference:
                    del self._kept[number]

        with self._lock:
            entry = self._kept.get(number)
            if entry is None or entry[0]() is not found.inner:
                entry = self._kept[number] = (weakref.ref(found.inner, freed), [])
            others = [other for other in entry[1] if other.key != reading.key]
            entry[1][:] = [reading, *others][:MOST_READINGS]


def lower(
    module: Any,
    shape: tuple[int, ...],
    reading: Reading | None,
    counts: tuple[int, int],
    check_time: Callable[[], None],
) -> Network:
    """`Network.from_torch`, by the operations that are kept in ``reading`` where there are some.

    They are kept there where all their tensors belong to the module, whose state is compared.
    ``counts`` and ``check_time`` are those of `read`.
    """
    from ..network.reading.lower import lower_graph, read

    if reading is not None and reading.graph is not None:
        layers = lower_graph(reading.graph)
    else:
        graph, layers = read(module, shape, counts, check_time)
        if reading is not None and reading.holds(graph):
            reading.graph = graph
    try:
        return Network(layers)
    except ValueError as error:
        raise Unsupported(str(error)) from error


READINGS = Readings()
"""Those of this process."""
