"""Starts a service of the guest: ``python3 -ISB …/casemate/guest/start.py NAME`` runs ``casemate.guest.NAME.service()``.

A start of Python costs an emulated processor as much as most services do, and a machine has a dozen of them. So ``site`` is left
out (``-S``), ``runpy`` (``-m``) too, and ``inspect``, of which ``dataclasses`` has need for classes without a docstring only, is
loaded when somebody asks it something. ``UNFORESEEN`` of a service's module is the identifier for what nobody foresaw.
"""

from __future__ import annotations

import sys

PACKAGES = "/usr/lib/python3/dist-packages"
"""Where Debian has modules, and the image ours."""


class Later(type(sys)):  # type: ignore[misc]  # the type of modules, without an import of ``types``
    """Stands for a module until something of it is used."""

    __name__: str

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # what the import system looks at
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        return getattr(__import__(self.__name__), name)


def start(name: str) -> int:
    """Run a service; return its exit code."""
    sys.modules.setdefault("inspect", Later("inspect"))
    module = __import__(f"casemate.guest.{name}", fromlist=["service"])
    from casemate.guest.report import run

    fallback = module.UNFORESEEN
    return run(module.service, fallback)


if __name__ == "__main__":
    sys.path.append(PACKAGES)
    sys.exit(start(sys.argv[1]))
