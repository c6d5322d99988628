"""The device functions come before what TVM generates, each file once and in an order that compiles."""

from __future__ import annotations

from importlib import resources

from tvmq.schedule.cuda.source import FILES, device_functions, whole


def test_every_file_is_part_of_the_source():
    folder = resources.files("tvmq.schedule.cuda") / "device"
    assert {f"{name}.cuh" for name in FILES} == {entry.name for entry in folder.iterdir()}
    assert "#pragma once" not in device_functions()
    assert whole("void f() {}").endswith("void f() {}")
