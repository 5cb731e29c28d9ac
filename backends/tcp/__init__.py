"""Plain TCP sockets: any host, and nothing but the kernel. ``README.md`` tells the wire format, and its limits."""

from aio_transfer.backends.native import NativeDriver

__all__ = ("create",)


def create(**options: object) -> NativeDriver:
    """Make an unopened tcp driver.

    :param options: ``address``, where to listen and what peers dial (the engine's ``host``, where that is an address,
        else ``"127.0.0.1"``; several, with commas, for a rail each), ``rails`` (1 … 8), ``connect_s`` (10),
        ``post_deadline_s`` (30), ``progress`` (``"adaptive"`` or ``"spin"``), ``spin_us``, ``cpus``; what they mean is
        in ``backends/tcp/domain.h``

    Opening it raises :class:`UsageError` for an option that is unknown or malformed, and
    :class:`BackendUnavailableError` where ``address`` is none of this machine's.
    """
    return NativeDriver("tcp", {name: value for name, value in options.items() if value is not None})
