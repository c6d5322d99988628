import torch

from tests.strategies import BLOCK_INPUTS, transformer_block
from tvmq import reference
from tvmq.calibrate.centring import key_biases
from tvmq.calibrate.collect import collect
from tvmq.passes.centre_keys import CentreKeys


def test_the_mean_of_every_key_channel_becomes_zero():
    mod = transformer_block(1)
    batches = [(torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(i)),) for i in range(4)]
    seen = collect(mod, batches, gram_inputs=BLOCK_INPUTS)
    keys = []
    after = CentreKeys(key_biases(mod, seen))(mod)
    for batch in batches:
        reference.run(after, batch, observe=lambda name, v: keys.append(v) if name == "attn.k.bias" else None)
    found = torch.cat(keys)
    assert found.mean(dim=(0, 1)).abs().max() < 1e-5 * found.abs().max() + 1e-6


def test_keys_without_moments_are_left_alone():
    mod = transformer_block(1)
    assert key_biases(mod, collect(mod, [(torch.ones(1, 5, 8),)])) == {}
