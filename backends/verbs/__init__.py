"""libibverbs, loaded at run time: InfiniBand and RoCE. ``README.md`` lists settings and quirks."""

from aio_transfer.backends.native import NativeDriver

__all__ = ("create",)


def create(**options: object) -> NativeDriver:
    """Make an unopened verbs driver.

    :param options: ``devices`` (``"mlx5_0,mlx5_1:2"``, or a sequence of such names), ``rails``, ``traffic_class``,
        ``service_level``; all of them in ``backends/verbs/domain.h``
    """
    given = {name: value for name, value in options.items() if value is not None}
    devices = given.get("devices")
    if isinstance(devices, (list, tuple)):
        given["devices"] = ",".join(map(str, devices))
    return NativeDriver("verbs", given)
