"""What a PrimFunc that launches a device function says to TVM."""

from __future__ import annotations

from tests.schedule.cuda.emulator import extents, parameters
from tvmq.schedule.cuda.launch import Call, Launch, device_prim_func, template


def test_a_launch_has_its_grid_its_arguments_and_its_memory():
    buffers = {"x": ((4, 8), "uint8"), "out": ((4, 8), "int16")}
    call = Call(template("f", 3, True, "int"), ("x", "shared", Call("tvmq::g", (None, "out", 5))))
    func = device_prim_func("f", buffers, ("out",), Launch(70000, 64, 7000), call)
    assert extents(func) == ([70000, 1, 1], [64, 1, 1])
    assert parameters(func) == ["x", "out"]
    text = func.script()
    assert '"tvmq::f<3, true, int>"' in text
    assert '"tvmq::g", 0, out.data, 5' in text
    assert "7000," in text
