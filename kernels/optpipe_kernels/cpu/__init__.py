"""The CPU target: C++ kernels behind a plain C ABI, and the plan that runs a step of them."""
