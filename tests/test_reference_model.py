import numpy as np
import torch

from tests import tiny_transformer
from tvmq.reference_model import ReferenceModel


def test_the_reference_is_called_like_a_compiled_model():
    model = ReferenceModel(tiny_transformer.canonical())
    (x,) = tiny_transformer.inputs(1)
    found = model(x)
    assert isinstance(found, np.ndarray)
    assert torch.equal(torch.from_numpy(found), model(torch.from_numpy(x)))
