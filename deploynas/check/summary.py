"""A check's result for reviewers and for CI."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

from deploynas.check.verdict import CheckResult

WORDS = {
    "pass": "passed",
    "over-budget": "over budget",
    "regressed": "regressed",
    "failed-gate": "failed",
    "inconclusive": "inconclusive",
}


def markdown(target: Path, device: str, result: CheckResult) -> str:
    """A short table, to append to a pull request or a job's summary."""
    x = result.latency
    rows = [(g.name, WORDS[g.verdict], g.reason) for g in result.gates]
    unstable = ", unstable" if x.unstable else ""
    lines = [
        f"### {target.resolve().name}: {WORDS[result.verdict]}",
        "",
        f"{x.median:.3f} ms (95 % interval {x.low:.3f}-{x.high:.3f}, {x.num_samples} "
        f"samples{unstable}) on {device}",
        "",
        "| gate | verdict | what was measured |",
        "| --- | --- | --- |",
        *(f"| {name} | {verdict} | {reason} |" for name, verdict, reason in rows),
    ]
    if result.regression and result.regression.slower:
        lines += [
            "", "| slower layer | before | now |", "| --- | --- | --- |",
            *(f"| {x.name} | {'new' if x.before_ms is None else f'{x.before_ms:.4f} ms'} | "
              f"{x.now_ms:.4f} ms |" for x in result.regression.slower),
        ]  # fmt: skip
    return "\n".join([*lines, ""])


def junit(target: Path, result: CheckResult) -> str:
    """JUnit XML: a test case a gate; one that cannot be told is an error, not a failure."""
    failed = [g for g in result.gates if g.verdict not in ("pass", "inconclusive")]
    untold = [g for g in result.gates if g.verdict == "inconclusive"]
    suite = ElementTree.Element(
        "testsuite", name="deploynas check", tests=str(len(result.gates)),
        failures=str(len(failed)), errors=str(len(untold)),
    )  # fmt: skip
    for gate in result.gates:
        case = ElementTree.SubElement(
            suite, "testcase", classname=target.resolve().name, name=gate.name
        )
        if gate in failed:
            ElementTree.SubElement(case, "failure", message=gate.reason, type=gate.verdict)
        elif gate in untold:
            ElementTree.SubElement(case, "error", message=gate.reason, type=gate.verdict)
        else:
            ElementTree.SubElement(case, "system-out").text = gate.reason
    ElementTree.indent(suite)
    return ElementTree.tostring(suite, encoding="unicode", xml_declaration=True) + "\n"
