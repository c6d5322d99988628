"""Who reads a stored value, and what a requantize to or from it asks of its scale."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from tvmq.formats import QuantParams
from tvmq.plan.formats import Formats, final, swallowed
from tvmq.plan.nodes import MULTIPLYING, Node, Nodes
from tvmq.quantize.site_weights import input_params
from tvmq.quantize.weights import largest_reached

TABLED = ("unary", "layer_norm", "attention")


@dataclass(frozen=True, slots=True)
class Reader:
    """A node that reads a value, perhaps through reshapes."""

    node: Node
    multiplies: bool  # in integers, and the value's channels are the ones that its weight has rows for


class Readers:
    """The readers of every stored value of a planned module."""

    def __init__(self, nodes: Nodes, formats: Formats, images: frozenset[str]) -> None:
        """images: the values laid out [N, C, H, W]."""
        self._nodes, self._formats, self._images = nodes, formats, images
        self._fused = swallowed(nodes, formats.integer)
        self._sharing: defaultdict[str, int] = defaultdict(int)
        for fmt in formats.values.values():
            self._sharing[fmt.region] += 1
        self._sites = [node for node in nodes.by_name.values() if self._is_product(node)]
        self._largest = {
            node.name: float(np.abs(node.call.args[1].value.numpy()).max(initial=0.0)) for node in self._sites
        }

    def of(self, name: str) -> list[Reader]:
        """Return the readers of a value; of one that has a uint8 copy, those of the copy."""
        fmt = self._formats.values.get(name)
        return list(self._through_views(name, copied=fmt is not None and fmt.also_uint8))

    def alone(self, name: str) -> bool:
        """Whether no other value shares the scale."""
        return self._sharing[self._formats.values[name].region] == 1

    def is_image(self, name: str) -> bool:
        """Whether channels are the value's axis 1, not its last."""
        return name in self._images

    def by_a_table(self, name: str) -> bool:
        """Whether a table may write the value's codes: the one that makes it, or one after its kernel.

        Not where a mask may hide all keys of a row, which kernels make zero: that need be none of the codes.
        """
        node = self._nodes.by_name.get(name)
        tabled = node is not None and node.kind in TABLED and node.op != "attention_bias"
        return tabled and name in self._formats.integer

    def by_a_shift(
        self,
        name: str,
        tried: QuantParams,
        values: Mapping[str, QuantParams],
        copies: Mapping[str, QuantParams],
    ) -> bool:
        """Whether all products that make or read a value still requantize by a shift if it is kept like this.

        A shift to the left is as far as few-bit weights leave room for (weights.scale_candidates).
        """
        own = {name: tried} if tried.dtype == values[name].dtype else {}
        copy = {name: tried} if not own else {}
        values, copies = {**values, **own}, {**copies, **copy}
        for site in self._sites:
            out = final(site.name, self._fused)
            source = self._formats.source(self._nodes, site.inputs[0])
            if name not in (out, source) or out not in values:
                continue
            step = input_params(self._nodes, site, values, copies).scale
            bits = self._formats.weight_bits.get(site.name, 8)
            if step * self._largest[site.name] > largest_reached(bits) * values[out].scale:
                return False
        return True

    def _through_views(self, name: str, *, copied: bool) -> Iterator[Reader]:
        for user in self._nodes.consumers.get(name, ()):
            node = self._nodes.by_name.get(user)
            if node is None:
                continue
            if node.kind == "view" and node.op == "reshape":
                same = self._same_channels(name, node)
                for reader in self._through_views(user, copied=copied):
                    yield Reader(reader.node, reader.multiplies and same)
            elif not copied or user in self._formats.uint8_readers:
                yield Reader(node, self._is_product(node))

    def _is_product(self, node: Node) -> bool:
        known = node.kind in MULTIPLYING and node.kind != "conv2d_transpose"
        return known and node.name in self._formats.integer

    def _same_channels(self, name: str, reshaped: Node) -> bool:
        """Whether a reshape leaves each number in its channel."""
        node = self._nodes.by_name.get(name)
        if node is None:
            return False
        channels = node.shape[1 if self.is_image(name) else -1]
        if self.is_image(name) == self.is_image(reshaped.name):
            return channels == reshaped.shape[1 if self.is_image(name) else -1]
        return self.is_image(name) and channels == reshaped.shape[-1] == math.prod(node.shape[1:])
