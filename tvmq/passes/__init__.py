"""IRModule -> IRModule passes; `canonicalize` strings the first of them together."""

import tvm_ffi

from tvmq.errors import (
    CalibrationError,
    EnvironmentMismatchError,
    TvmqError,
    UnsupportedModelError,
    UsageError,
)

# TVM carries an error through its C++ by the name of its class; of a name that it does not know it would make
# a RuntimeError.
for _error in (TvmqError, UsageError, CalibrationError, UnsupportedModelError, EnvironmentMismatchError):
    tvm_ffi.register_error(_error.__name__, _error)
