"""Hosts and identities: the files of this machine, the identity of an engine, and the address it is dialed at.

No sockets and no devices are opened here; RDMA ports and EFA devices belong to their backends.
"""
