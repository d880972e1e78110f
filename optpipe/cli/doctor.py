"""``optpipe doctor``: what this machine has, and what is missing for optpipe to work well."""

from __future__ import annotations

import os
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import click

from ..plugins import installed_plugins
from .command import Command, json_option
from .output import human_bytes, print_json, print_table

# The CPU features that kernels are or will be chosen by, as /proc/cpuinfo spells them.
CPU_FEATURES = (
    "avx2",
    "fma",
    "f16c",
    "avx_vnni",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx512_fp16",
    "amx_int8",
    "amx_bf16",
)


@click.command(cls=Command, name="doctor")
@click.argument("artifact", type=click.Path(path_type=Path), required=False)
@json_option
def command(artifact: Path | None, as_json: bool) -> int:
    """Report versions, CPU features, kernels, memory and devices.

    With ARTIFACT, also what of it has no CPU kernel and is left to torch, and why.

    Exits with 1 when a requirement is missing or has a version that optpipe does not work with.
    """
    report: dict[str, Any] = {
        "system": system(),
        "versions": versions(),
        "cpu": cpu(Path("/proc/cpuinfo")),
        "memory": memory(Path("/proc/meminfo")),
        "devices": devices(),
        "kernels": kernels(),
        "targets": targets(),
        "plugins": plugins(),
    }
    if artifact is not None:
        report["artifact"] = segments(artifact)
    if as_json:
        print_json(report)
    else:
        _print(report)
    return int(any(it["problem"] and it["required"] for it in report["versions"]))


def system() -> dict[str, str]:
    """The interpreter and the operating system."""
    return {"python": platform.python_version(), "platform": platform.platform(), "prefix": sys.prefix}


def versions() -> list[dict[str, Any]]:
    """Each package that optpipe asks for: what is installed, what is wanted, and what is wrong with it."""
    from packaging.requirements import Requirement

    found = []
    for text in ["optpipe", *(metadata.requires("optpipe") or [])]:
        requirement = Requirement(text)
        if requirement.name == "optpipe" and text != "optpipe":
            continue  # an extra that names other extras
        extra = requirement.marker is not None and not requirement.marker.evaluate({"extra": ""})
        try:
            installed: str | None = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            installed = None
        problem = ""
        if installed is None:
            problem = "not installed"
        elif not requirement.specifier.contains(installed, prereleases=True):
            problem = "out of range"
        found.append(
            {
                "package": requirement.name,
                "installed": installed,
                "wanted": str(requirement.specifier),
                "required": not extra,
                "problem": problem,
            }
        )
    return list({it["package"]: it for it in reversed(found)}.values())[::-1]


def cpu(cpuinfo: Path) -> dict[str, Any]:
    """The CPU's name, the cores this process may use, and which of CPU_FEATURES it has."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    values = dict(reversed([_pair(line) for line in lines if ":" in line]))
    flags = values.get("flags", "").split()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "model": values.get("model name", platform.processor() or "unknown"),
        "cores": cores,
        "features": [name for name in CPU_FEATURES if name in flags],
    }


def memory(meminfo: Path) -> dict[str, int | None]:
    """Total and available memory in bytes; None where the system does not say."""
    lines = meminfo.read_text().splitlines() if meminfo.exists() else []
    values = dict(_pair(line) for line in lines if ":" in line)

    def in_bytes(key: str) -> int | None:
        return int(values[key].split()[0]) * 1024 if key in values else None

    return {"total": in_bytes("MemTotal"), "available": in_bytes("MemAvailable")}


def devices() -> list[dict[str, Any]]:
    """What torch can compute on."""
    try:
        import torch
    except ImportError:
        return []
    found: list[dict[str, Any]] = [{"device": "cpu", "name": "CPU", "bytes": None}]
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found.append({"device": f"cuda:{index}", "name": properties.name, "bytes": properties.total_memory})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "bytes": None})
    return found


def kernels() -> list[dict[str, Any]]:
    """The kernel families that are installed, and why one cannot run here."""
    return [
        {
            "name": it.name,
            "device": it.value.device,
            "ops": list(it.value.ops),
            "from": it.plugin.distribution,
            "problem": it.value.why_not(),
            "details": getattr(it.value, "details", dict)(),
        }
        for it in installed_plugins().kernels().values()
    ]


def targets() -> list[dict[str, Any]]:
    """The targets that ``--target`` takes, and why one cannot run here."""
    return [
        {
            "name": it.name,
            "devices": list(getattr(it.value, "devices", ("cpu",))),
            "from": it.plugin.distribution,
            "problem": getattr(it.value, "why_not", lambda: None)(),
            "details": getattr(it.value, "details", dict)(),
        }
        for it in installed_plugins().targets().values()
    ]


def segments(path: Path) -> dict[str, Any]:
    """The instruction set that an artifact's plan would use, and the operations that torch would run."""
    from ..artifact import load_artifact
    from .plan import plan_of

    report = plan_of(load_artifact(path, hashes=False), "cpu")
    return {key: report[key] for key in ("target", "isa", "segments")} | {"steps": len(report["steps"])}


def plugins() -> dict[str, Any]:
    """How many plugins are loaded, and which are broken."""
    found = installed_plugins()
    found.passes(), found.targets(), found.model_sources()  # a plugin may break only when it is asked
    return {
        "loaded": [it.key for it in found.loaded],
        "broken": [str(it) for it in found.broken],
        "left_out": found.skipped,
    }


def _pair(line: str) -> tuple[str, str]:
    key, _, value = line.partition(":")
    return key.strip(), value.strip()


def _print(report: dict[str, Any]) -> None:
    cpu_facts, memory_facts = report["cpu"], report["memory"]
    click.echo(f"Python {report['system']['python']} on {report['system']['platform']}")
    click.echo(f"CPU: {cpu_facts['model']}, {cpu_facts['cores']} cores usable")
    click.echo(f"CPU features: {' '.join(cpu_facts['features']) or 'none known'}")
    sizes = {key: "unknown" if it is None else human_bytes(it) for key, it in memory_facts.items()}
    click.echo(f"Memory: {sizes['total']}, {sizes['available']} available")
    for device in report["devices"]:
        size = "" if device["bytes"] is None else f", {human_bytes(device['bytes'])}"
        click.echo(f"Device: {device['device']} ({device['name']}{size})")
    if not report["kernels"]:
        click.echo("Kernels: none installed; every operation runs on its reference body, right and slow")
    for family in report["kernels"]:
        state, count = family["problem"] or "ready", len(family["ops"])
        click.echo(f"Kernels: {family['name']} for {family['device']}, {count} operations: {state}")
        _print_details(family["details"])
    for target in report["targets"]:
        click.echo(f"Target: {target['name']}: {target['problem'] or 'ready'}")
        _print_details(target["details"])
    click.echo(f"Plugins: {', '.join(report['plugins']['loaded'])}")
    for broken in report["plugins"]["broken"]:
        click.echo(f"Broken: {broken}")
    if "artifact" in report:
        from .plan import print_segments

        click.echo(f"Artifact: {report['artifact']['steps']} steps on {report['artifact']['isa']}")
        print_segments(report["artifact"])
    rows = [_version_row(it) for it in report["versions"]]
    print_table(["package", "installed", "wanted", "required", "problem"], rows)


def _print_details(details: dict[str, Any]) -> None:
    for name, value in details.items():
        click.echo(f"  {name}: {' '.join(value) if isinstance(value, list) else value}")


def _version_row(facts: dict[str, Any]) -> tuple[str, ...]:
    required = "yes" if facts["required"] else "extra"
    return facts["package"], facts["installed"] or "-", facts["wanted"], required, facts["problem"]
