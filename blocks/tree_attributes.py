"""Extended attributes of files and directories, access lists and capabilities among them, as GNU
tar keeps them: `tar --xattrs --xattrs-include='*' -x` gives them back too."""

import errno
import os
from collections.abc import Mapping

from blocks import tar_pipe

PREFIX = "SCHILY.xattr."
# Labels that a system puts on by its own rules; those of another system mean nothing to it.
OF_THE_SYSTEM = ("security.selinux", "security.ima", "security.evm")
NONE_HERE = (errno.ENOTSUP, errno.ENODATA)


def read(handle: int) -> dict[str, str]:
    """Of an open file or directory, as headers of a tar stream. Raises OSError."""
    found = {}
    for name in _names(handle):
        if name in OF_THE_SYSTEM:
            continue
        try:
            value = os.getxattr(handle, name)
        except OSError as error:
            if error.errno in NONE_HERE:  # gone meanwhile
                continue
            raise
        found[PREFIX + name.replace("%", "%25").replace("=", "%3D")] = tar_pipe.text(value)
    return found


def _names(handle: int) -> list[str]:
    try:
        return os.listxattr(handle)
    except OSError as error:
        if error.errno in NONE_HERE:  # this file system has none
            return []
        raise


def write(handle: int, headers: Mapping[str, str]) -> list[str]:
    """-> those that this system, or who we are, does not let us give."""
    refused = []
    for header, value in headers.items():
        if not header.startswith(PREFIX):
            continue
        name = header.removeprefix(PREFIX).replace("%3D", "=").replace("%25", "%")
        try:
            os.setxattr(handle, name, value.encode(*tar_pipe.ENCODING))
        except OSError:
            refused.append(name)
    return refused
