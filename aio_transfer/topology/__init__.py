"""Hosts and identities: which machine this is, which engine a peer is, and where it is dialed.

No sockets and no devices are opened here; RDMA ports and EFA devices belong to their backends.
"""
