"""What `numaemu up` may be told about other users, and what it may not."""

import json
from typing import Any

import pytest

from numaemu_core.admission import AdmissionError, from_dict, make_admission, parse_uid

KEY, OTHER_KEY = "rq:rM>}U?@Lns47E1%kR.o@n%FcmmsL/@{H8]yf7", "JTKVSB%%)wK0E.X)V>+}o?pNmC{O&4W4b!Ni{Lh6"


def test_what_was_granted() -> None:
    """To all, to one, and to nobody else."""
    found = make_admission([1000, 1001], ["CAP_SYS_NICE", "1000:CAP_IPC_LOCK,CAP_SYS_ADMIN", "1000:CAP_SYS_NICE"])
    assert found.capabilities(1000) == {"CAP_SYS_NICE", "CAP_IPC_LOCK", "CAP_SYS_ADMIN"}
    assert found.capabilities(1001) == {"CAP_SYS_NICE"}
    assert make_admission([1000]).capabilities(1000) == frozenset()


def test_it_crosses_a_command_line() -> None:
    """As JSON and back it is the same."""
    found = make_admission(
        [1000], ["CAP_SYS_NICE", "1000:CAP_IPC_LOCK"], listen="tcp://127.0.0.1:5555", keys=[KEY, f"{OTHER_KEY}=1000"]
    )
    assert len(set(found.keys.values())) == 2
    assert found.keys[OTHER_KEY] == 1000
    assert from_dict(json.loads(json.dumps(found.as_dict()))) == found


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"uids": [0]}, "root is not admitted"),
        ({"uids": [-1]}, "expected a user id from 1"),
        ({"uids": [1 << 32]}, "expected a user id from 1"),
        ({"uids": range(1, 2000)}, "at most 1024"),
        ({"uids": [1], "grants": ["CAP_NET_RAW"]}, "'CAP_NET_RAW' is not known"),
        ({"uids": [1], "grants": ["2:CAP_SYS_NICE"]}, "user 2, whom nothing admits"),
        ({"uids": [1], "grants": ["x:CAP_SYS_NICE"]}, "expected a user id, got 'x'"),
        ({"listen": "tcp://127.0.0.1:1"}, "no key is authorized"),
        ({"listen": "ipc:///tmp/x", "keys": [KEY]}, "expected an endpoint such as tcp://"),
        ({"keys": [KEY]}, "no endpoint on TCP"),
        ({"listen": "tcp://127.0.0.1:1", "keys": [KEY, KEY]}, "authorized twice"),
        ({"listen": "tcp://127.0.0.1:1", "keys": [KEY[:-1]]}, "expected a public key of 40"),
        ({"listen": "tcp://127.0.0.1:1", "keys": [KEY + "x"]}, "expected a public key of 40"),
        ({"listen": "tcp://127.0.0.1:1", "keys": [KEY + "=0"]}, "root is not admitted"),
    ],
)
def test_what_cannot_be(given: dict[str, Any], complaint: str) -> None:
    """One sentence that names what was wrong."""
    with pytest.raises(AdmissionError, match=complaint):
        make_admission(**given)


@pytest.mark.parametrize("text", ["", "x", "-1", "1.5", "²", " 7"])
def test_user_ids_as_text(text: str) -> None:
    """Only plain numbers are user ids."""
    with pytest.raises(AdmissionError, match="expected a user id"):
        parse_uid(text)
