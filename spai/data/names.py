"""Names of users' files: where they may lead, how they are shown."""

from pathlib import PurePosixPath, PureWindowsPath


def inner_name(name: str, *, where: str) -> str:
    """Return the POSIX form of a relative name that cannot leave the folder it is joined to.

    Args:
        name: from a CSV; `./` and double slashes are dropped.
        where: what the message begins with, such as the CSV and its row.

    Raises:
        ValueError: empty, absolute (on any system), with `..`, or with a NUL character.

    Example:
        >>> inner_name("./a//b.png", where="list.csv, row 1")
        'a/b.png'
    """
    path = PurePosixPath(name)
    windows = PureWindowsPath(name)
    absolute = path.is_absolute() or windows.drive or windows.root
    if absolute or ".." in (*path.parts, *windows.parts) or not path.parts or "\0" in name:
        raise ValueError(
            f"{where}: {name!r} cannot name what is written; "
            "give a relative path without '..', such as folder/image.png"
        )
    return path.as_posix()


def printable(name: str) -> str:
    r"""Return a name with escapes for what a terminal or a browser would act on.

    Example:
        >>> printable("a\u202egnp.exe")
        'a\\u202egnp.exe'
    """
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in name)
