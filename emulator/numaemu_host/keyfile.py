"""Files with a pair of CURVE keys: for their owner's eyes only, and refused if they are not."""

import os
import stat
import tomllib
from pathlib import Path
from typing import Final

_MODE: Final = 0o600
_BYTES_MAX: Final = 4096
_KEY_CHARACTERS: Final = 40
_TEXT: Final = """\
# A pair of CURVE keys of numaemu. Give `public` to others, and keep this file to yourself.
public = "{public}"
secret = "{secret}"
"""


def write_keys(path: str | os.PathLike[str], public: str, secret: str) -> None:
    """Make a file that only this user can read. FileExistsError if there is one: keys are never overwritten."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, _MODE)
    with os.fdopen(fd, "w", encoding="ascii") as file:
        os.fchmod(file.fileno(), _MODE)
        file.write(_TEXT.format(public=public, secret=secret))


def read_keys(path: str | os.PathLike[str]) -> tuple[str, str]:
    """The public and the secret key, in Z85.

    Raises:
        PermissionError: others can read the file, or it belongs to another user. ValueError: it holds no keys.
        OSError: it cannot be read.
    """
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    with os.fdopen(fd, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_uid not in {0, os.getuid()} or found.st_mode & 0o077:
            raise PermissionError(
                f"{os.fspath(path)}: expected a file that only uid {os.getuid()} can read (chmod 600)"
            )
        text = file.read(_BYTES_MAX)
    try:
        values = tomllib.loads(text.decode("ascii"))
    except ValueError:
        values = {}
    public, secret = values.get("public"), values.get("secret")
    if not isinstance(public, str) or not isinstance(secret, str) or {len(public), len(secret)} != {_KEY_CHARACTERS}:
        raise ValueError(f"{os.fspath(path)}: no file of `numaemu key`: expected `public` and `secret` keys")
    return public, secret


def public_key(text: str) -> str:
    """A public key as somebody gave it: itself, or the path of a file that begins with it or was written here.

    Raises:
        ValueError: it is neither. OSError: the file cannot be read.
    """
    if len(text) == _KEY_CHARACTERS and not Path(text).exists():
        return text
    content = Path(text).read_text(encoding="ascii")[:_BYTES_MAX]
    for line in content.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() == "public":
            return value.strip().strip('"')
    first = content.split()[0] if content.split() else ""
    if len(first) != _KEY_CHARACTERS:
        raise ValueError(f"{text}: expected a public key of {_KEY_CHARACTERS} characters")
    return first


def authorized_keys(text: str) -> list[str]:
    """Public keys, each as KEY or KEY=UID: the one that was given, or those of a file, one a line; # begins a remark.

    OSError if it is neither a key nor a file that can be read.
    """
    if len(text) == _KEY_CHARACTERS or text[_KEY_CHARACTERS : _KEY_CHARACTERS + 1] == "=":
        return [text]
    lines = Path(text).read_text(encoding="utf-8").splitlines()
    words = [line.split(None, 1)[0] for line in lines if line.split() and not line.lstrip().startswith("# ")]
    return [word for word in words if word != "#"]
