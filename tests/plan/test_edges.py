import numpy as np
import torch
from tvm import relax
from tvm.relax import op

from tests import tiny_transformer
from tests.strategies import ModuleBuilder
from tvmq.frontend import import_model
from tvmq.passes.canonicalize import canonicalize
from tvmq.plan.edges import FIRST, LAST, edge_sites
from tvmq.plan.nodes import index


def linears(make: ModuleBuilder, x: relax.Var, *names: str) -> relax.Var:
    """Return x multiplied by a constant once per name."""
    for name in names:
        x = make.bind(name, op.matmul(x, make.constant(8, 8)))
    return x


def edges(build) -> dict[str, str]:
    make = ModuleBuilder(np.random.default_rng(0))
    x = relax.Var("x", relax.TensorType((3, 8), "float32"))
    return edge_sites(index(make.module([x], build(make, x))))


def test_a_transformer_begins_with_its_first_projections_and_ends_with_its_head():
    first = {f"blocks.0.qkv.{name}": FIRST for name in "qkv"}
    assert edge_sites(tiny_transformer.nodes()) == {**first, "head": LAST}


def test_norms_and_activations_at_either_end_are_looked_through():
    def build(make, x):
        y = make.bind("active", op.nn.gelu(make.bind("scaled", op.multiply(x, make.constant(8)))))
        return make.bind("softmax", op.nn.softmax(linears(make, y, "a", "b", "c")))

    assert edges(build) == {"a": FIRST, "c": LAST}


def test_every_input_and_every_output_has_an_end():
    def build(make, x):
        stem = linears(make, x, "stem", "body")
        return relax.Tuple([linears(make, stem, "class"), linears(make, stem, "neck", "box"), stem])

    assert edges(build) == {"stem": FIRST, "class": LAST, "box": LAST}


def test_what_adds_the_input_to_another_product_is_not_first():
    def build(make, x):
        return linears(make, make.bind("add", op.add(linears(make, x, "a"), x)), "b", "c")

    assert edges(build) == {"a": FIRST, "c": LAST}


def test_a_model_of_ids_has_a_last_product_alone():
    text = torch.nn.Sequential(torch.nn.Embedding(9, 8), torch.nn.Linear(8, 8), torch.nn.Linear(8, 4))
    mod = canonicalize(import_model(text.eval(), (torch.zeros(1, 3, dtype=torch.int64),)))
    assert edge_sites(index(mod)) == {"2": LAST}
