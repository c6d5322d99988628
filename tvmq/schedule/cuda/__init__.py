"""Kernels for NVIDIA GPUs: device functions in CUDA C++ (device/), and the PrimFuncs that launch them."""
