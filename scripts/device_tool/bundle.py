# SPDX-License-Identifier: Apache-2.0
"""The bundle: include/ and lib/ of the packages in cmake/packages.txt, and bundle.json about them.

Flat folders without CMake files: cmake/packages.cmake looks for headers and libraries by name.
Static libraries are preferred, since programs then carry them. Where a distribution has shared ones
only, they go in under the name that programs ask for, and CMake writes the folder into the rpath.
"""

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DESCRIPTION = "bundle.json"


class DeviceError(Exception):
    """Ends the command with one message."""


@dataclass
class Package:
    """A row of cmake/packages.txt."""

    name: str
    header: str
    libraries: list[str]


def say(text: str) -> None:
    print(f"device: {text}", file=sys.stderr, flush=True)


def read_packages() -> list[Package]:
    lines = (ROOT / "cmake/packages.txt").read_text(encoding="utf-8").splitlines()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    return [Package(row[2], row[3], row[4:]) for row in rows]


def git_commit() -> str | None:
    """HEAD's abbreviation, with "-dirty" if tracked files differ; None outside git."""
    if not (ROOT / ".git").exists():  # else git would answer for a tree around this one
        return None
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def distribution() -> str:
    try:
        return platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        return platform.system()


def installed_files(package: str) -> list[str]:
    if not shutil.which("dpkg"):
        raise DeviceError("pack needs a Debian or Ubuntu machine: there is no dpkg here")
    listing = subprocess.run(["dpkg", "-L", package], capture_output=True, text=True, check=False)
    if listing.returncode != 0:
        raise DeviceError(f"the package {package} is not installed; run scripts/setup")
    return listing.stdout.splitlines()


def copy(source: str | Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)


def soname(library: str) -> str:
    """The name that programs linked to a shared library ask the loader for."""
    command = ["readelf", "--dynamic", library]
    dynamic = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    match = re.search(r"\(SONAME\).*\[(.*)\]", dynamic)
    return match[1] if match else Path(library).name


def copy_package(package: Package, folder: Path) -> None:
    files = installed_files(package.name)
    header = next((name for name in files if name.endswith(f"/{package.header}")), None)
    if header is None:
        raise DeviceError(f"the package {package.name} has no {package.header}")
    root = header.removesuffix(package.header)
    for name in files:
        if name.startswith(root) and os.path.isfile(name):
            copy(name, folder / "include" / name.removeprefix(root))
    for library in package.libraries:
        by_name = {Path(name).name: name for name in files}
        static, shared = (by_name.get(f"lib{library}.{end}") for end in ("a", "so"))
        if static:
            copy(static, folder / "lib" / Path(static).name)
        elif shared:
            for name in {Path(shared).name, soname(shared)}:
                copy(shared, folder / "lib" / name)
        else:
            raise DeviceError(
                f"the package {package.name} has neither lib{library}.a nor lib{library}.so"
            )


def pack(output: Path) -> Path:
    """Makes the bundle in `output`, which appears whole or not at all."""
    if output.exists() and not (output / DESCRIPTION).exists() and any(output.iterdir()):
        raise DeviceError(f"{output} is not a bundle; it is left as it is")
    packages = read_packages()
    temporary = output.with_name(f".{output.name}-{os.getpid()}")
    try:
        for package in packages:
            copy_package(package, temporary)
        description = {
            "commit": git_commit(),
            "architecture": platform.machine(),
            "system": distribution(),
            "glibc": platform.libc_ver()[1],
            "packages": [package.name for package in packages],
        }
        (temporary / DESCRIPTION).write_text(json.dumps(description, indent=1) + "\n")
        if output.exists():
            shutil.rmtree(output)
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    say(f"packed {len(packages)} packages of {description['system']}, {size / 2**20:.1f} MiB")
    return output


def version_tuple(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", text))


def read_bundle(folder: Path) -> dict:
    """What bundle.json says; an error if it is absent or for another kind of machine."""
    try:
        description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DeviceError(
            f"no bundle in {folder}: run 'scripts/device pack' where scripts/setup has been run, "
            "and copy its folder to this place, or name it with --bundle"
        ) from None
    except ValueError as error:
        raise DeviceError(f"{folder / DESCRIPTION}: {error}; pack the bundle again") from None
    if description["architecture"] != platform.machine():
        raise DeviceError(
            f"the bundle in {folder} is for {description['architecture']}, "
            f"and this machine is {platform.machine()}"
        )
    glibc = platform.libc_ver()[1]
    if version_tuple(description["glibc"]) > version_tuple(glibc):
        say(
            f"warning: packed with glibc {description['glibc']}, newer than this {glibc}: if "
            "programs do not link, pack on an older distribution"
        )
    return description
