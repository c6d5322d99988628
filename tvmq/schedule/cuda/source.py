"""The CUDA source of a module: the device functions in front of what TVM generates."""

from __future__ import annotations

import re
from functools import cache
from importlib import resources

FILES = ("instructions", "epilogue", "sources", "product", "attention", "rows", "windows")

# TVM's preamble under NVRTC asks for headers of libcu++, of which it uses the integer types only.
HEADERS = {
    "cuda/std/cstdint": """#pragma once
namespace cuda { namespace std {
typedef unsigned char uint8_t; typedef unsigned short uint16_t; typedef unsigned int uint32_t;
typedef unsigned long long uint64_t; typedef signed char int8_t; typedef short int16_t; typedef int int32_t;
typedef long long int64_t;
} }
""",
    "cuda/std/type_traits": """#pragma once
namespace cuda { namespace std {
template <class T, T V> struct integral_constant { static constexpr T value = V; };
template <class A, class B> struct is_same : integral_constant<bool, false> {};
template <class A> struct is_same<A, A> : integral_constant<bool, true> {};
template <class A, class B> constexpr bool is_same_v = is_same<A, B>::value;
template <class T> struct is_integral; template <class T> struct is_signed;
template <class T> struct is_unsigned;
template <class T> struct is_floating_point;
template <bool C, class T = void> struct enable_if {};
template <class T> struct enable_if<true, T> { typedef T type; };
template <bool C, class A, class B> struct conditional { typedef A type; };
template <class A, class B> struct conditional<false, A, B> { typedef B type; };
} }
""",
}


@cache
def device_functions() -> str:
    """Return the text of device/*.cuh in the order they need one another."""
    folder = resources.files("tvmq.schedule.cuda") / "device"
    texts = [(folder / f"{name}.cuh").read_text(encoding="utf-8") for name in FILES]
    return "\n".join(text.replace("#pragma once\n", "") for text in texts)


def with_names(generated: str) -> str:
    """Return what TVM generated with names that C++ takes.

    A layer of nn.Sequential is called "2", and what reads its output then has a parameter "2_ptr".
    """
    return re.sub(r"(?<![\w.])(?=\d+_)", "v", generated)


def whole(generated: str) -> str:
    """Return the source that a compiler takes for what TVM generated."""
    return f"{device_functions()}\n{generated}"
