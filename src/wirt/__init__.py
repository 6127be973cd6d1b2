"""wirt: virtual machines of this host, as a library.

::

    import wirt

    with wirt.run("debian:12", memory="1G") as vm:
        print(vm.exec(["uname", "-a"]).text)

    web = wirt.create("web", "debian:12", cpu={"vcpus": 2})
    web.start()
    web.wait()
    web.exec(["systemctl", "status"])
    web.stop()

Everything is synchronous, and every error is one of ``wirt.errors``. ``wirt.image`` works
with disk images alone. Names are imported when they are first used, so that ``import wirt``
costs nothing.
"""

from wirt.version import VERSION as __version__  # noqa: N811 - the name that tools look for

_HOME_OF = {
    "Context": "wirt.vm.context",
    "Machine": "wirt.spec.machine",
    "Result": "wirt.vm.vm",
    "Vm": "wirt.vm.vm",
    "WirtError": "wirt.errors",
    "create": "wirt.vm.vm",
    "home_at": "wirt.store.layout",
    "machines": "wirt.vm.vm",
    "run": "wirt.vm.vm",
}

__all__ = [
    "Context",
    "Machine",
    "Result",
    "Vm",
    "WirtError",
    "__version__",
    "create",
    "home_at",
    "machines",
    "run",
]


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name in _HOME_OF:
        return getattr(import_module(_HOME_OF[name]), name)
    raise AttributeError(f"module 'wirt' has no attribute {name!r}")
