"""Demo: disaggregated prefill and decode of a small transformer.

``disaggregated`` is the decode side and starts ``prefill`` processes; ``model`` is the transformer and ``messages``
what the processes exchange. Only NumPy is needed: there is no GPU and no real model here.
"""
