"""From seconds to figures: medians, ratios round by round, and the table."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

NEAR = 1e-3  # nats by which log-probs of the same tokens may differ
CROWDED = 0.2  # cores in use by other processes, on average over a measure


def summary(answers: Sequence[Mapping[str, Any]], tokens: int) -> dict[str, Any]:
    """Of one measure: every round's seconds, their median, tokens a second at it, and the largest memory."""
    seconds = [answer["seconds"] for answer in answers]
    median = statistics.median(seconds)
    return {
        "seconds": [round(s, 4) for s in seconds],
        "median_seconds": round(median, 4),
        "tokens_per_second": round(tokens / median, 1),
        "processor_seconds": round(statistics.median(x["processor_seconds"] for x in answers), 4),
        "others_cores": round(max(answer["others_cores"] for answer in answers), 2),
        "peak_bytes": max(answer["peak_bytes"] for answer in answers),
    }


def ratios(theirs: Sequence[float], ours: Sequence[float]) -> dict[str, float]:
    """How many times as long theirs takes, compared within each round: what the machine does besides drifts."""
    found = [a / b for a, b in zip(theirs, ours, strict=True)]
    return {
        "median": round(statistics.median(found), 3),
        "min": round(min(found), 3),
        "max": round(max(found), 3),
    }


def with_ratios(rows: dict[str, dict[str, Any]], base: str = "ours") -> dict[str, dict[str, Any]]:
    """Rows {name: {"measures": {measure: summary}}} with `ratio` to the base's where both were measured as often."""
    own = rows.get(base, {}).get("measures", {})
    for row in rows.values():
        for measure, found in row.get("measures", {}).items():
            ours = own.get(measure, {}).get("seconds", [])
            if len(ours) == len(found.get("seconds", [])) > 0:
                found["ratio"] = ratios(found["seconds"], ours)
    return rows


def table(workloads: Mapping[str, Mapping[str, Any]]) -> str:
    """A line for each workload, system and measure, in Markdown."""
    lines = [
        "| workload | system | measure | median s | tokens/s | x ours (range) | peak GiB | note |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for workload, result in workloads.items():
        for name, row in result["systems"].items():
            lines += [f"| {workload} | {name} | {line}" for line in _lines(row)]
    return "\n".join(lines)


def remarks(workloads: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """What a reader of the table must know."""
    said = []
    for name, result in workloads.items():
        same = result["same_model"]
        if same:
            apart = max(same["largest_difference"].values())
            verdict = "the same model" if same["agree"] else "NOT THE SAME MODEL"
            said.append(f"{name}: {verdict}: log-probs differ by {apart:.1e} at most")
        found = [f for row in result["systems"].values() for f in row.get("measures", {}).values()]
        others = max((f.get("others_cores", 0.0) for f in found), default=0.0)
        if others > CROWDED:
            said.append(
                f"{name}: other processes used up to {others:.1f} cores meanwhile; measure again alone"
            )
    return said


def _lines(row: Mapping[str, Any]) -> list[str]:
    note = row.get("note", "")
    if "error" in row:
        return [f"| | | | | failed: {row['error']} |"]
    return [_line(measure, found, note) for measure, found in row["measures"].items()]


def _line(measure: str, found: Mapping[str, Any], note: str) -> str:
    if "error" in found:
        return f"{measure} | | | | | failed: {found['error']} |"
    ratio = found.get("ratio")
    times = f"{ratio['median']:.2f} ({ratio['min']:.2f}-{ratio['max']:.2f})" if ratio else ""
    numbers = f"{found['median_seconds']:.2f} | {found['tokens_per_second']:,.0f}"
    return f"{measure} | {numbers} | {times} | {found['peak_bytes'] / 2**30:.2f} | {note} |"
