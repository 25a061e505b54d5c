"""Writes the ``cidata`` volume of a machine: an ISO 9660 image that :mod:`casemate.cidata` and cloud-init read."""

from __future__ import annotations

from io import BytesIO

PLAIN = {"user-data": "USERDATA", "meta-data": "METADATA", "vendor-data": "VENDORDA", "network-config": "NETCONF"}


def make(user_data: bytes, meta_data: bytes, vendor_data: bytes, network_config: bytes | None = None) -> bytes:
    """Return the bytes of a volume labelled ``cidata``, with Joliet and Rock Ridge names."""
    import pycdlib

    contents = {"user-data": user_data, "meta-data": meta_data, "vendor-data": vendor_data}
    if network_config is not None:
        contents["network-config"] = network_config
    volume = pycdlib.PyCdlib()
    volume.new(vol_ident="cidata", joliet=3, rock_ridge="1.09")
    for name, content in contents.items():
        volume.add_fp(
            BytesIO(content),
            len(content),
            f"/{PLAIN[name]}.;1",
            rr_name=name,
            joliet_path=f"/{name}",
            file_mode=0o100444,
        )
    out = BytesIO()
    volume.write_fp(out)
    volume.close()
    return out.getvalue()
