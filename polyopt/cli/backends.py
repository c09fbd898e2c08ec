"""``polyopt backends``: what is installed here."""

from __future__ import annotations

from typing import Any

from polyopt.cli import output


def backends(as_json: bool) -> int:
    """List every registered backend: its versions and devices, or what to install."""
    from polyopt.backend import registry

    with output.log().status("loading the frameworks …"):
        found = [describe(name) for name in registry.names()]
    if as_json:
        output.emit({"backends": found})
        return 0
    rows = [
        [
            b["name"],
            "yes" if b["installed"] else "no",
            ", ".join(f"{k} {v}" for k, v in b["versions"].items()) or "–",
            ", ".join(b["devices"]) or "–",
            "yes" if b["float64"] else "–",
            "" if b["installed"] else b["install"],
        ]
        for b in found
    ]
    columns = ["backend", "installed", "versions", "devices", "float64", "to install"]
    if all(b["installed"] for b in found):
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    output.screen().print(output.table("", columns, rows))
    for b in found:
        if b["error"]:
            output.say(f"{b['name']}: {b['error']}")
    return 0


def describe(name: str) -> dict[str, Any]:
    """Describe one backend as plain data."""
    from polyopt.backend import registry
    from polyopt.core.errors import BackendError

    about: dict[str, Any] = {
        "name": name,
        "installed": False,
        "versions": {},
        "devices": [],
        "float64": False,
        "install": registry.how_to_install(name),
        "error": None,
    }
    try:
        backend = registry.by_name(name)
    except BackendError as e:
        return about | {"error": str(e)}
    backend.enable_float64()
    return about | {
        "installed": True,
        "versions": backend.versions(),
        "devices": list(backend.devices()),
        "float64": backend.dtype_name(backend.from_numpy([1.0], dtype="float64")) == "float64",
    }
