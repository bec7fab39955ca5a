"""What a run did, as JSON or as a JUnit file: calls by kind, calls that were refused, pages by node."""

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any, Final
from xml.etree import ElementTree as ET

from numaemu_run.session import Outcome, Session

#: XML 1.0, Char.
_NOT_IN_XML: Final = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def make_report(form: str, session: Session, command: Sequence[str], outcome: Outcome) -> str:
    """The report in that form, "json" or "junit"; ends with a line feed."""
    facts = gather(session, command, outcome)
    return (_junit(facts) if form == "junit" else json.dumps(facts, indent=2)) + "\n"


def gather(session: Session, command: Sequence[str], outcome: Outcome) -> dict[str, Any]:
    """What there is to tell. On a machine of others, pages by node are everybody's during the run."""
    supervisor = session.supervisor
    assert supervisor is not None
    counts = supervisor.family.counts
    return {
        "command": list(command),
        "pid": session.pid,
        "exit_code": outcome.code if outcome.code >= 0 else None,
        "signal": -outcome.code if outcome.code < 0 else None,
        "seconds": round(session.seconds, 3),
        "machine": session.machine.name,
        "profile": session.machine.topology.profile,
        "tree_mounted": session.mounted,
        "processes": counts.processes,
        "threads": counts.threads,
        "killed_out_of_memory": counts.killed,
        "unchanged_vdsos": supervisor.unchanged_vdsos,
        "calls": dict(sorted(supervisor.calls.items())),
        "refused": dict(sorted(supervisor.refused.items())),
        "files_given": supervisor.files_given,
        "pages_placed": counts.pages_placed,
        "pages_ambiguous": counts.pages_ambiguous,
        "pages_by_node": session.pages_by_node,
        "seed": session.machine.topology.seed,
        "faults": session.faults_struck,
        "ended_unmet": counts.ended_unmet,
        "troubles": dict(supervisor.family.troubles.counts),
        "exited": [asdict(process) for process in supervisor.family.exited],
    }


def _junit(facts: dict[str, Any]) -> str:
    """One test: the command."""
    failed = facts["exit_code"] != 0
    suite = ET.Element(
        "testsuite", name="numaemu run", tests="1", failures=str(int(failed)), errors="0", time=str(facts["seconds"])
    )
    properties = ET.SubElement(suite, "properties")
    for name, value in facts.items():
        if isinstance(value, dict):
            for key, one in value.items():
                ET.SubElement(properties, "property", name=f"{name}.{key}", value=str(one))
        elif not isinstance(value, list):
            ET.SubElement(properties, "property", name=name, value=str(value))
    case = ET.SubElement(
        suite, "testcase", classname="numaemu.run", name=_words(facts["command"]), time=str(facts["seconds"])
    )
    if failed:
        how = f"exit code {facts['exit_code']}" if facts["signal"] is None else f"signal {facts['signal']}"
        ET.SubElement(case, "failure", message=how)
    ET.indent(suite)
    return ET.tostring(suite, encoding="unicode", xml_declaration=True)


def _words(command: Sequence[str]) -> str:
    """As a shell takes it; what XML cannot hold (control characters, bytes that are no text) as it is escaped there."""
    return _NOT_IN_XML.sub(lambda found: f"\\x{ord(found[0]) & 0xFF:02x}", shlex.join(command))
