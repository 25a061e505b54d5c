"""Errors of deployments."""

from __future__ import annotations

from casemate.errors import CasemateError


class DeployError(CasemateError):
    """A deployment is refused, or libvirt refuses it. ``id`` tells which: the families are in ``docs/libvirt.md``."""

    id = "DEPLOY"
