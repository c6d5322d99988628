"""Find the first and the last products of a model: quantized to few bits, they cost more than all others."""

from __future__ import annotations

from tvmq.plan.nodes import MULTIPLYING, OUTPUT, Nodes

NARROWED = (*MULTIPLYING, "attention")  # what is computed of fewer than 8 bits
FIRST, LAST = "first", "last"
EDGE_REASONS = {
    FIRST: "; it reads the model's input, which keeps 8 bits",
    LAST: "; it makes the model's output, which keeps 8 bits",
}


def edge_sites(nodes: Nodes) -> dict[str, str]:
    """Return site -> FIRST or LAST.

    First: what reads a float input of the model that no other product made anything of. Last: what makes an
    output that no other product makes anything of.
    """
    products = {name for name, node in nodes.by_name.items() if node.kind in NARROWED}
    after = {name: False for name in nodes.parameters}  # value -> whether a product comes before it
    found: dict[str, str] = {}
    for name, node in nodes.by_name.items():
        inputs = [after[source] for source in node.inputs if source in after]
        if inputs:
            after[name] = any(inputs) or name in products
        if name in products and inputs and not any(inputs):
            found[name] = FIRST
    before: dict[str, bool] = {}  # value -> whether a product comes after it
    for name in reversed(list(nodes.by_name)):
        users = [user for user in nodes.consumers.get(name, ()) if user != OUTPUT]
        before[name] = any(user in products or before[user] for user in users)
        if name in products and not before[name]:
            found.setdefault(name, LAST)
    return found
