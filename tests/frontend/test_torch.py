"""Torch models import with their modules' names and compute the same."""

import copy
import importlib
import warnings

import numpy as np
import pytest
import torch

from tvmq import reference
from tvmq.errors import UnsupportedModelError, UsageError
from tvmq.frontend import import_model
from tvmq.frontend.torch import mend_torchvision


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(3, 8, 3, padding=1)
        self.bn = torch.nn.BatchNorm2d(8)
        self.norm = torch.nn.LayerNorm(8)
        self.fc_in = torch.nn.Linear(8, 8)
        self.mha = torch.nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = torch.nn.Sequential(torch.nn.GELU(), torch.nn.Linear(8, 4, bias=False))

    def forward(self, image):
        x = self.bn(self.conv(image)).flatten(2).transpose(1, 2)
        x = self.fc_in(self.fc_in(self.norm(x)))
        x = x + self.mha(x, x, x, need_weights=False)[0]
        return self.head(x).mean(1)


class Unknown(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(4, 4), Bessel())

    def forward(self, x):
        return torch.linalg.svdvals(self.body(x))


class Bessel(torch.nn.Module):
    def forward(self, x):
        return torch.special.bessel_j0(x)


class Branch(torch.nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda t: t + 1, lambda t: t - 1, (x,))


class Pair(torch.nn.Module):
    def forward(self, x):
        return x + 1, None


@pytest.fixture
def image():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net().eval()


def sites(mod):
    names = [binding.var.name for binding in mod["main"].body.blocks[0].bindings]
    assert len(set(names)) == len(names)
    return [name for name in names if not name.startswith(("lv", "gv"))]


def assert_same(mod, model, *inputs):
    with torch.no_grad():
        want = model(*inputs)
    (got,) = reference.run(mod, inputs)
    torch.testing.assert_close(got, want, atol=1e-4, rtol=0)


def exported(net, image, axis):
    free = {"image": {axis: torch.export.Dim("free", min=1, max=64)}}
    return torch.export.export(net, (image,), dynamic_shapes=free)


def test_sites_carry_module_paths(net, image):
    mod = import_model(net, (image,))
    want = ["conv", "bn", "norm", "fc_in", "fc_in.1", "mha.in_proj", "mha.out_proj", "head.1"]
    assert sites(mod) == want
    assert [param.name for param in mod["main"].params] == ["image"]
    assert mod["main"].attrs["num_input"] == 1
    assert_same(mod, net, image)


def test_example_inputs_may_be_arrays_by_name(net, image):
    assert_same(import_model(net, {"image": image.numpy()}), net, image)


def test_a_module_in_training_is_exported_as_in_eval_and_left_alone(net, image):
    training = copy.deepcopy(net).train()
    before = training.bn.running_mean.clone()
    assert_same(import_model(training, [image]), net, image)
    assert training.training
    torch.testing.assert_close(training.bn.running_mean, before)


@pytest.mark.parametrize(("given", "batch"), [(False, 1), (True, 2)])
def test_a_free_batch_is_fixed(net, image, given, batch):
    mod = import_model(exported(net, image, 0), (image,) if given else None)
    assert "tir_var_upper_bound" not in mod["main"].attrs
    assert_same(mod, net, image[:batch])


def test_a_saved_program_imports(net, image, tmp_path):
    path = tmp_path / "net.pt2"
    torch.export.save(torch.export.export(net, (image,)), path)
    assert_same(import_model(path), net, image)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(UsageError, match=r"net\.pt2: is no \.pt2 archive or is truncated"):
        import_model(path)


def test_every_unknown_operator_is_listed_with_its_module():
    with pytest.raises(UnsupportedModelError) as caught:
        import_model(Unknown(), (torch.ones(4, 4),))
    message = str(caught.value)
    assert "aten.special_bessel_j0.default (in body.1)" in message
    assert "aten._linalg_svd.default (in the model itself)" in message
    assert message.endswith("(`ignored` does not help: it keeps an imported operator in float)")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Branch(), r"TVM cannot import cond \(in the model itself\)"),
        (Pair(), r"output 1 is None, tvmq returns tensors only"),
        (torch.nn.Linear(3, 3), r"Linear: torch\.export cannot trace it with these example_inputs"),
    ],
)
def test_what_cannot_be_imported_gets_a_sentence(model, message):
    with pytest.raises(UnsupportedModelError, match=message):
        import_model(model, (torch.ones(4),))


def test_wrong_example_inputs_get_a_sentence(net, image):
    program = torch.export.export(net, (image,))
    with pytest.raises(UsageError, match="does not say its input shapes, wanted example_inputs"):
        import_model(net)
    with pytest.raises(UsageError, match="'return_dict' is True, wanted an array or a tensor"):
        import_model(net, {"image": image, "return_dict": True})
    with pytest.raises(UsageError, match=r"'image' is \[1, 3, 4, 4\], the program takes \[2, 3, 4, 4\]"):
        import_model(program, (image[:1],))
    with pytest.raises(UsageError, match=r"do not fit the program, whose inputs are \['image'\]"):
        import_model(program, {"picture": image})


def test_a_free_dimension_other_than_the_batch_is_refused():
    program = torch.export.export(
        torch.nn.ReLU(), (torch.ones(2, 5),), dynamic_shapes={"input": {1: torch.export.Dim("tokens")}}
    )
    with pytest.raises(UsageError, match=r"input 'input': dimension 1 is free \(\w+\), tvmq compiles one"):
        import_model(program)


def test_weights_are_checked(net, image):
    broken = copy.deepcopy(net)
    broken.fc_in.weight.data[0, 0] = np.nan
    with pytest.raises(UsageError, match=r"fc_in\.weight: holds 1 NaN and 0 infinite of 64 values"):
        import_model(broken, (image,))
    with pytest.raises(UsageError, match=r"conv\.weight: is float16, tvmq starts from float32; call"):
        import_model(copy.deepcopy(net).half(), (image.half(),))


def test_torchvision_imports_after_mending():
    pytest.importorskip("torchvision.version")
    assert library("torchvision").ops.nms


TIMM = [
    "deit_tiny_patch16_224",
    "deit_small_patch16_224",
    "deit_base_patch16_224",
    "vit_small_patch16_224",
    "vit_base_patch16_224",
    "swin_tiny_patch4_window7_224",
    "resnet50",
    "mobilenetv2_100",
]


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_timm_models_import_and_agree(name):
    timm = library("timm")
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False).eval()
    image = torch.randn(1, 3, 224, 224)
    mod = import_model(model, (image,))
    modules = dict(model.named_modules())
    unknown = [site for site in sites(mod) if site not in modules]
    assert all(site.endswith("relative_position_bias_table") for site in unknown)
    assert_same(mod, model, image)


@pytest.mark.slow
def test_bert_with_a_mask_imports():
    transformers = library("transformers")
    config = transformers.BertConfig(
        num_hidden_layers=2, hidden_size=64, num_attention_heads=4, intermediate_size=128, vocab_size=100
    )
    inputs = {
        "input_ids": torch.arange(32).reshape(2, 16),
        "attention_mask": (torch.arange(16) < torch.tensor([[16], [9]])).to(torch.int64),
    }
    model = transformers.BertModel(config).eval()
    mod = import_model(model, inputs)
    assert [param.name for param in mod["main"].params] == ["input_ids", "attention_mask"]
    assert sites(mod)[4:7] == [f"encoder.layer.0.attention.self.{part}" for part in ("query", "key", "value")]
    got = run_compiled(mod, list(inputs.values()))
    with torch.no_grad():
        want = model(**inputs)
    torch.testing.assert_close(got[0], want.last_hidden_state, atol=1e-4, rtol=0)
    torch.testing.assert_close(got[1], want.pooler_output, atol=1e-4, rtol=0)


def library(name):
    """Import a model library, which raises warnings of its own and may need torchvision."""
    mend_torchvision()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return importlib.import_module(name)


def run_compiled(mod, inputs):
    """Run mod through TVM itself, which has every operator that its importer emits."""
    import tvm
    from tvm import relax

    machine = relax.VirtualMachine(relax.build(mod, "llvm"), tvm.cpu())
    outputs = machine["main"](*(tvm.runtime.tensor(value.numpy()) for value in inputs))
    return [torch.from_numpy(output.numpy()) for output in outputs]
