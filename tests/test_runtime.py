import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny_program
from tvmq import runtime
from tvmq.environment import allowed_cpus
from tvmq.errors import ArtifactError, EnvironmentMismatchError, UsageError
from tvmq.spec import SiteTrace, TensorSpec

CALLS = ("run", "trace", "profile")


@pytest.fixture(scope="module")
def program():
    return runtime.Program(tiny_program.built())


def test_main_computes(program):
    x = tiny_program.an_input()
    y, again = program.run(x)
    np.testing.assert_array_equal(y, tiny_program.expected(x))
    np.testing.assert_array_equal(again, x.ravel())


def test_outputs_stay_when_the_next_call_comes(program):
    x = tiny_program.an_input()
    first = program.run(x)
    kept = [array.copy() for array in first]
    program.run(255 - x)
    for array, copy in zip(first, kept, strict=True):
        np.testing.assert_array_equal(array, copy)


@pytest.mark.parametrize("start", [0, 1])
def test_no_output_shares_memory_with_the_input_wherever_that_lies(program, start):
    # again is the input passed through, which the program read in place.
    place = runtime.aligned_empty((tiny_program.an_input().size + 64,), "uint8")
    x = place[start:][: tiny_program.an_input().size].reshape(tiny_program.an_input().shape)
    x[...] = tiny_program.an_input()
    y, again = program.run(x)
    np.testing.assert_array_equal(y, tiny_program.expected(x))
    assert not np.may_share_memory(again, x)
    np.testing.assert_array_equal(again, x.ravel())
    x[...] = 0
    np.testing.assert_array_equal(again, tiny_program.an_input().ravel())


def test_inputs_whose_elements_are_not_aligned_are_copied():
    spec = TensorSpec("x", (3,), "float32")
    program = runtime.Program(dataclasses.replace(tiny_program.built(), inputs=(spec,)))
    place = runtime.aligned_empty((16,), "uint8")
    for start, in_place in [(0, True), (4, True), (1, False)]:
        x = place[start : start + 12].view("float32")
        given = program._argument(0, x)
        assert np.may_share_memory(np.from_dlpack(given), x) == in_place


def test_strided_inputs_are_read_right(program):
    x = np.asfortranarray(tiny_program.an_input())
    np.testing.assert_array_equal(program.run(x)[0], tiny_program.expected(x))


def test_trace_gives_every_site(program):
    x = tiny_program.an_input()
    product, y = program.trace(x)
    np.testing.assert_array_equal(y, tiny_program.expected(x))
    np.testing.assert_array_equal(y - product, np.broadcast_to(tiny_program.weights()[1], y.shape))


def test_profile_names_kernels_by_site(program):
    times = program.profile(tiny_program.an_input(), repeat=3)
    assert [time.name for time in times] == ["fc", "fc.bias"]
    assert all(time.us >= 0 for time in times)


def test_threads_are_those_of_this_process(program):
    for count in (1, len(allowed_cpus())):
        program.set_threads(count)
        program.run(tiny_program.an_input())
    with pytest.raises(UsageError, match=r"threads: 4096 given, 1 to \d+ is wanted"):
        program.set_threads(4096)


def test_a_call_without_a_site_gets_an_ordinal():
    calls = [
        runtime.KernelCall(symbol, 0.0, wrote) for symbol, wrote in [("cast", 1), ("dot", 2), ("dot", 3)]
    ]
    sites = {3: SiteTrace("head", "linear", (1,), "int32")}
    assert runtime.name_calls(calls, calls, sites) == ["cast.0", "dot.0", "head"]


def test_what_trace_alone_unpacks_is_named_by_the_kernel_that_packed_it():
    def calls(*rows):
        return [runtime.KernelCall(symbol, 0.0, wrote, read) for symbol, wrote, read in rows]

    main = calls(("keys", 2, 1), ("keys", 3, 1), ("mix", 4, 2))
    # The unpacked rows of the first are written where its packed ones are read no more.
    trace = calls(("keys", 2, 1), ("unpack", 5, 2), ("keys", 3, 1), ("unpack", 6, 3), ("mix", 2, 3))
    sites = {at: SiteTrace(name, "linear", (1,), "int8") for at, name in ((5, "a.k"), (6, "b.k"), (2, "b"))}
    assert runtime.name_calls(main, trace, sites) == ["a.k", "b.k", "b"]


def test_a_file_that_is_no_library_is_an_error_in_words():
    with pytest.raises(EnvironmentMismatchError, match="set TMPDIR to a folder that allows execution"):
        runtime.Program(tiny_program.built(code=b"not a library"))


@pytest.mark.parametrize(
    ("call", "part", "message"),
    [
        *((call, "constants", "does not take its own inputs and constants") for call in CALLS),
        *((call, "outputs", "gives 2 tensors where 1 are described") for call in ("run", "profile")),
        *((call, "sites", "gives 2 tensors where 1 are described") for call in ("trace", "profile")),
    ],
)
def test_a_description_that_does_not_fit_the_code_is_an_error_in_words(call, part, message):
    built = tiny_program.built()
    program = runtime.Program(dataclasses.replace(built, **{part: getattr(built, part)[:1]}))
    with pytest.raises(ArtifactError, match=message):
        getattr(program, call)(tiny_program.an_input())


def test_weights_of_another_shape_are_an_error_in_words():
    built = tiny_program.built()
    weights = dataclasses.replace(built.constants[0], array=built.constants[0].array.reshape(16, 8))
    program = runtime.Program(dataclasses.replace(built, constants=(weights, built.constants[1])))
    with pytest.raises(ArtifactError, match="does not take its own inputs and constants"):
        program.run(tiny_program.an_input())


def test_aligned_arrays_are_used_in_place():
    array = runtime.aligned_empty((3, 5), "int32")
    assert array.ctypes.data % runtime.ALIGNMENT == 0
    assert runtime.aligned(array) is array
    shifted = runtime.aligned_empty((80,), "uint8")[1:]
    copy = runtime.aligned(shifted)
    assert copy.ctypes.data % runtime.ALIGNMENT == 0
    np.testing.assert_array_equal(copy, shifted)


def test_the_runtime_loads_without_tvm_and_torch():
    code = (
        "import sys; from tvmq import runtime; runtime.load_runtime()\n"
        "print(sorted({'tvm', 'torch'} & set(sys.modules)), len(sys.meta_path))\n"
        "import torch\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("[]")
