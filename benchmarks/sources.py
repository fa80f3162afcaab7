"""Data files: searched in a folder, fetched from their official address where absent, and always verified.

The folder is ``data_dir``, else the one that the environment variable ``LAPLACE_FIBER_DATA`` names, else
``~/.cache/laplace-fiber``. A folder that holds the files is used as it is.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import subprocess
import tarfile
import urllib.request
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import unquote, urlparse

from tqdm import tqdm

from benchmarks.records import write_whole

ENVIRONMENT_VARIABLE = "LAPLACE_FIBER_DATA"
USER_CACHE = Path("~/.cache/laplace-fiber")
TIMEOUT_SECONDS = 30.0
_BLOCK = 1 << 16
_PARTIAL_CONTENT, _RANGE_NOT_SATISFIABLE = 206, 416
_UNREADABLE = (
    EOFError,
    KeyError,
    subprocess.CalledProcessError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Source:
    """A file and where it comes from.

    Attributes
    ----------
    path
        Where it lies inside the data folder.
    sha256
        Its checksum.
    home
        The page that tells of it.
    address
        Where it can be downloaded; None: only by hand.
    member
        Its name inside the zip or tar archive at ``address``; None: the address is that of the file itself. A member
        ending in ``.Z`` is unpacked with the program gzip.
    """

    path: str
    sha256: str
    home: str
    address: str | None = None
    member: str | None = None


def data_folder(data_dir: str | Path | None = None) -> Path:
    """The folder of all data files."""
    return Path(data_dir or os.environ.get(ENVIRONMENT_VARIABLE) or USER_CACHE).expanduser()


def present(source: Source, data_dir: str | Path | None = None) -> bool:
    """Whether the data folder holds the file."""
    return (data_folder(data_dir) / source.path).is_file()


def verified(source: Source, data_dir: str | Path | None = None) -> bytes:
    """The content of a file whose checksum has been verified; it is fetched where the data folder lacks it.

    A transfer goes to a file ending in ``.part``, which a later call continues, and which gets its final name only once
    the checksum is right. Several processes may ask for the same file. An archive stays beside its member, so that
    other members need no further transfer.

    Raises
    ------
    FileNotFoundError
        It is not there and could not be fetched; the message says how to get it by hand.
    ValueError
        Its checksum is another one.
    """
    folder = data_folder(data_dir)
    path = folder / source.path
    if not path.is_file():
        if source.address is None:
            raise FileNotFoundError(_by_hand(source, folder))
        try:
            with _alone(path.parent):
                if not path.is_file():  # another process may have fetched it meanwhile
                    _fetch(source, path)
        except (OSError, HTTPException) as error:  # urllib's own errors are among them
            raise FileNotFoundError(f"{_by_hand(source, folder)} Fetching {source.address} failed: {error}.") from error
    content = path.read_bytes()
    _verify(source, content, path)
    return content


def _by_hand(source: Source, folder: Path) -> str:
    inside = f", member {source.member} of an archive" if source.member else ""
    return (
        f"Expected the file {source.path}; it is not in {folder}. Get it from {source.home}{inside} and put it there, "
        f"or name the folder that holds it (--data-dir or the environment variable {ENVIRONMENT_VARIABLE})."
    )


def _verify(source: Source, content: bytes, origin: object) -> None:
    digest = hashlib.sha256(content).hexdigest()
    if digest != source.sha256:
        raise ValueError(
            f"{origin} should have sha256 {source.sha256}, but has {digest}: it is another version or damaged. "
            f"Get it anew from {source.home}."
        )


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in this folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _fetch(source: Source, path: Path) -> None:
    """Bring a source to ``path``. What turns out to be wrong is deleted, what is incomplete stays to be continued."""
    address = source.address or ""
    file = path.with_name(unquote(Path(urlparse(address).path).name)) if source.member else path
    held = file if file.is_file() else _transfer(address, file.with_name(f"{file.name}.part"))
    try:
        content = _member(held, source.member) if source.member else held.read_bytes()
        _verify(source, content, f"{address} ({source.member})" if source.member else address)
    except ValueError:
        held.unlink()
        raise
    except _UNREADABLE as error:
        held.unlink()
        raise OSError(f"the archive cannot be read or lacks the member ({error!r})") from error
    held.replace(file)
    if source.member:
        write_whole(path, lambda unfinished: unfinished.write_bytes(content))


def _transfer(address: str, part: Path) -> Path:
    """Download to the file ``part``, from where an earlier transfer was interrupted, if the server can do so.

    Raises
    ------
    OSError
        No connection, or it ended early.
    """
    start = part.stat().st_size if part.is_file() else 0
    request = urllib.request.Request(address, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except HTTPError as error:
        if error.code != _RANGE_NOT_SATISFIABLE:
            raise
        return part  # complete already; its checksum will tell
    with response, part.open("ab" if response.status == _PARTIAL_CONTENT else "wb") as target:
        length = response.headers["Content-Length"]
        expected = None if length is None else target.tell() + int(length)
        with tqdm(total=expected, initial=target.tell(), unit="B", unit_scale=True, desc=part.stem) as bar:
            while block := response.read(_BLOCK):
                target.write(block)
                bar.update(len(block))
        received = target.tell()
    if expected is not None and received < expected:
        raise OSError(f"the connection ended after {received} of {expected} bytes; run again to continue there")
    return part


def _member(archive: Path, name: str) -> bytes:
    """A file inside an archive; KeyError where there is none of this name."""
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as members:
            content = members.read(name)
    else:
        with tarfile.open(archive) as members_of_tar:
            file = members_of_tar.extractfile(name)
            if file is None:
                raise KeyError(name)
            content = file.read()
    if name.endswith(".Z"):
        return subprocess.run(["gzip", "-dc"], input=content, stdout=subprocess.PIPE, check=True).stdout
    return content
