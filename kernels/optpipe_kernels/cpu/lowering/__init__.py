"""From the text of a graph to the native plan, without torch.

convert   Program → instructions over strided views; what no kernel does is a segment for torch
fuse      neighbouring instructions become one
arena     buffers get places: liveness, a multiple of T, R or B bytes
emit      the arrays that the C ABI takes
"""
