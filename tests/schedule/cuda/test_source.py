"""The device functions come before what TVM generates, each file once and in an order that compiles."""

from __future__ import annotations

from importlib import resources

from tvmq.schedule.cuda.source import FILES, device_functions, whole, with_names


def test_every_file_is_part_of_the_source():
    folder = resources.files("tvmq.schedule.cuda") / "device"
    assert {f"{name}.cuh" for name in FILES} == {entry.name for entry in folder.iterdir()}
    assert "#pragma once" not in device_functions()
    assert whole("void f() {}").endswith("void f() {}")


def test_names_that_begin_with_a_digit_get_a_letter():
    text = "void f(float* __restrict__ 2_ptr, int x_2_ptr) { 2_ptr[0] = 1.5e+00f + x_2_ptr; }"
    assert with_names(text) == (
        "void f(float* __restrict__ v2_ptr, int x_2_ptr) { v2_ptr[0] = 1.5e+00f + x_2_ptr; }"
    )
