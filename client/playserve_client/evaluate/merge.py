"""Puts the shards of one run together, and refuses what does not belong together."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from playserve.errors import BadSettingError
from playserve.files import write_json
from playserve_client.evaluate.journal import Journal, Result, differences
from playserve_client.evaluate.plan import Settings, Shard
from playserve_client.evaluate.report import build_report

__all__ = ["merge_runs"]


def merge_runs(folders: Sequence[Path], out: Path, *, partial: bool = False) -> dict[str, Any]:
    """Write the run that the shards in `folders` are parts of into `out`; return its report.

    Args:
        folders: One folder a shard.
        out: A folder without a run in it. A partial one can be completed there by the same command without --shard.
        partial: Whether missing shards and episodes are allowed.

    Raises:
        BadSettingError: Two folders differ in a setting, a package or the policy's version, or hold the same episode,
            or something is missing and `partial` is false.
    """
    if not folders:
        raise BadSettingError("nothing to merge: name the folders of the shards")
    if (out / "settings.json").exists():
        raise BadSettingError(f"{out} holds a run already")
    journals = [Journal(folder) for folder in folders]
    parts = [journal.load() for journal in journals]
    _check_equal(journals, parts)
    whole = replace(parts[0], shard=Shard())
    results = _results(journals)
    version = next((journal.version for journal in journals if journal.version), "")
    missing = _missing(whole, parts, results)
    if missing and not partial:
        raise BadSettingError(f"not complete: {'; '.join(missing)}. --partial merges all the same")
    merged = Journal(out)
    knowledge = journals[0].knowledge
    with merged.open(whole, journals[0].packages, knowledge.read_bytes() if knowledge is not None else b""):
        if version:
            merged.set_version(version)
        for row in whole.rows():
            for assignment in row.assignments(whole.seed_start, whole.shard):
                if (key := (assignment.row, assignment.number)) in results:
                    merged.add(results[key])
    for journal in journals:
        if journal.actions_dir.exists():
            shutil.copytree(journal.actions_dir, merged.actions_dir, dirs_exist_ok=True)
    servers = sorted({server for journal in journals if (server := _server(journal))})
    report = build_report(
        whole,
        merged.results,
        {
            "policy": {"name": whole.policy, "version": version, "server": ", ".join(servers)},
            "packages": journals[0].packages,
            "merged_from": [str(folder) for folder in folders],
            "videos": [],
            "recordings": [],
            "notes": [],
        },
        whole.env.rules.recorded(merged.knowledge) if merged.knowledge is not None else (),
    )
    write_json(out / "results.json", report, allow_nan=True)
    return report


def _check_equal(journals: Sequence[Journal], parts: Sequence[Settings]) -> None:
    def head(journal: Journal, part: Settings) -> dict[str, Any]:
        return {"settings": replace(part, shard=Shard()).to_json(), "packages": journal.packages}

    wanted = head(journals[0], parts[0])
    seen: dict[int, Path] = {}
    version, named_by = "", journals[0].out
    for journal, part in zip(journals, parts, strict=True):
        changed = differences(head(journal, part), wanted)
        if part.shard.count != parts[0].shard.count:
            changed.append(f"shard count is {part.shard.count}, not {parts[0].shard.count}")
        if changed:
            raise BadSettingError(f"{journal.out} does not belong to {journals[0].out}: {'; '.join(changed)}")
        if part.shard.index in seen:
            raise BadSettingError(f"{journal.out} and {seen[part.shard.index]} are both shard {part.shard.index}")
        seen[part.shard.index] = journal.out
        if journal.version and version and journal.version != version:
            raise BadSettingError(f"{journal.out} was played by version {journal.version!r}, {named_by} by {version!r}")
        if journal.version:
            version, named_by = journal.version, journal.out


def _results(journals: Sequence[Journal]) -> dict[tuple[str, int], Result]:
    results: dict[tuple[str, int], Result] = {}
    for journal in journals:
        both = results.keys() & journal.results.keys()
        if both:
            row, number = min(both)
            raise BadSettingError(f"{journal.out} holds episode {number} of {row}, which another folder holds too")
        results.update(journal.results)
    return results


def _missing(whole: Settings, parts: Sequence[Settings], results: dict[tuple[str, int], Result]) -> list[str]:
    count = parts[0].shard.count
    absent = sorted(set(range(count)) - {part.shard.index for part in parts})
    missing = [f"shard {index}/{count} is not there" for index in absent]
    for row in whole.rows():
        lacking = [a for a in row.assignments(whole.seed_start, whole.shard) if (a.row, a.number) not in results]
        here = [a for a in lacking if a.number % count not in absent]
        if here:
            missing.append(f"{len(here)} of {row.episodes} episodes of {row.key} are not finished")
    return missing


def _server(journal: Journal) -> str:
    try:
        value = json.loads((journal.out / "results.json").read_text())
        return str(value["policy"]["server"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return ""
