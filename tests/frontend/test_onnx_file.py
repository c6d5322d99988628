"""An ONNX file is refused unless it is whole and keeps to its folder."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from tvmq.errors import UsageError
from tvmq.frontend.onnx_file import check_complete, load_model


def small_model():
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 64]) for name in ("x", "y")]
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "fc.weight")
    nodes = [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])]
    return helper.make_model(helper.make_graph(nodes, "net", values[:1], values[1:], [weight]))


def with_external(path, location):
    """Save the model at path with its weight's data said to be at location."""
    source = small_model()
    onnx.save(source, path, save_as_external_data=True, location="net.data", size_threshold=0)
    source = onnx.load(path, load_external_data=False)
    source.graph.initializer[0].external_data[0].value = location
    path.write_bytes(source.SerializeToString())


def test_external_data_beside_the_model_is_read(tmp_path):
    with_external(tmp_path / "net.onnx", "net.data")
    weight = numpy_helper.to_array(load_model(tmp_path / "net.onnx").graph.initializer[0])
    np.testing.assert_array_equal(weight, np.ones((64, 64), np.float32))


@pytest.mark.parametrize("location", ["../secret.data", "/etc/passwd", "link.data", ""])
def test_external_data_elsewhere_is_refused(tmp_path, location):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret.data").write_bytes(b"\0" * (64 * 64 * 4))
    (folder / "link.data").symlink_to(tmp_path / "secret.data")
    with_external(folder / "net.onnx", location)
    with pytest.raises(UsageError, match=r"weight 'fc.weight' points to .*, outside the model's folder"):
        load_model(folder / "net.onnx")


def test_external_data_that_is_missing_or_short_is_refused(tmp_path):
    with_external(tmp_path / "net.onnx", "net.data")
    (tmp_path / "net.data").write_bytes(b"\0" * 100)
    with pytest.raises(UsageError, match=r"'net.data' has 100 bytes, weight 'fc.weight' ends at byte 16384"):
        load_model(tmp_path / "net.onnx")
    (tmp_path / "net.data").unlink()
    with pytest.raises(UsageError, match=r"weight 'fc.weight' is in 'net.data', which is missing"):
        load_model(tmp_path / "net.onnx")


def test_a_model_in_memory_without_its_weights_is_refused(tmp_path):
    with_external(tmp_path / "net.onnx", "net.data")
    with pytest.raises(UsageError, match=r"fc.weight: its values are in an external file"):
        check_complete(onnx.load(tmp_path / "net.onnx", load_external_data=False))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a model at all\n" * 10, "is no ONNX model or is truncated"),
        (small_model().SerializeToString()[:9000], "is no ONNX model or is truncated"),
        (b"", "holds no ONNX graph"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path, content, message):
    (tmp_path / "net.onnx").write_bytes(content)
    with pytest.raises(UsageError, match=rf"net\.onnx: {message}"):
        load_model(tmp_path / "net.onnx")
