"""GPU memory: the CUDA driver API by ``dlopen``, and exports as dma-buf.

Movers and kernels are not here.
"""
