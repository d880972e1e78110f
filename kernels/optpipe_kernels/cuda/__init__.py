"""The ``cuda`` target: an artifact on Triton kernels, its decode steps replayed from CUDA graphs.

target      what plugins see: options, and how an artifact becomes an executor
fusion      Program → steps: joined linear layers, rope with the write of keys and values
recipes     how a weight of the steps is made of the artifact's
weights     recipes → tensors on the device, read in parallel through pinned memory
operations  a kernel for each step, or its body where no kernel does it (kernel_finder, cache_operations)
calls       steps → a flat list of calls over registers
leftovers   what no kernel does: eager, or compiled by Inductor
cache       the paged cache in the dtypes that it can have
staging     a step's arrays in one buffer, copied in one transfer
buckets     which shapes are captured, and how a step is padded to one
graphs      capture and replay
executor    all of it behind ``optpipe.targets.protocol.Executor``
"""
