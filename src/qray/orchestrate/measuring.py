"""Latency and memory with nothing else running on the node: an exclusive task, its units and their keys."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from qray.errors import QrayError, Unavailable
from qray.judge.index import At
from qray.measure.costs import PARTS
from qray.measure.latency import measure_latency
from qray.measure.memory import measure_memory
from qray.orchestrate.costs import CostJob, measure_costs
from qray.orchestrate.placement import whereabouts
from qray.orchestrate.plan import Plan
from qray.orchestrate.store import Store, pack_folder, unit_key, unpack_folder
from qray.study import Measure
from qray.variants.artifact import read_artifact

#: Loading an artifact and its first calls take some seconds; a busy or slow machine gets many times that.
SECONDS_PER_ARTIFACT = 60.0


def built_keys(store: Store, plan: Plan) -> list[str]:
    """Build keys of the study's artifacts that exist, in the study's order."""
    return [key for key in plan.build.values() if store.get("build", key) is not None]


def latency_key(store: Store, plan: Plan, at: At) -> str:
    """Key of the interleaved measurement of all the study's artifacts at one (threads, batch)."""
    measure = plan.study.measure.model_dump(mode="json", exclude={"threads", "batches"})
    return unit_key("measure", artifacts=sorted(built_keys(store, plan)), threads=at[0], batch=at[1], measure=measure)


def memory_key(build_key: str, at: At) -> str:
    """Key of one artifact's peak memory at one (threads, batch)."""
    return unit_key("memory", artifact=build_key, threads=at[0], batch=at[1])


def points(study_measure: Measure) -> list[At]:
    """Every (threads, batch) that the study names."""
    return [(threads, batch) for threads in study_measure.threads for batch in study_measure.batches]


def memory_step(at: At) -> str:
    """Key of the step that measures the memory of all artifacts at one (threads, batch)."""
    return f"memory-{at[0]}-{at[1]}"


def quiet_node(able: Collection[str]) -> tuple[str, float]:
    """(node id, its CPUs) to measure on, of those that can: CPU nodes before GPU nodes, then the one with the most
    CPUs."""
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] in able]
    if not nodes:
        raise Unavailable(f"none of the {len(able)} nodes that can measure this is alive")
    best = max(nodes, key=lambda n: (n["Resources"].get("GPU", 0) == 0, n["Resources"]["CPU"], n["NodeID"]))
    return best["NodeID"], best["Resources"]["CPU"]


def needs_of(store: Store, keys: list[str]) -> set[str]:
    """What a CPU must have to run every one of these artifacts."""
    return {flag for key in keys for flag in read_artifact(store.artifact_folder(key)).built.needs}


def exclusive_options(name: str, able: Collection[str]) -> dict[str, Any]:
    """Options of a task that has a node to itself, one of those that can do it."""
    node, cpus = quiet_node(able)
    return {
        "name": name,
        "num_cpus": cpus,
        "max_retries": 0,
        "scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False),
    }


def pack_artifacts(store: Store, keys: list[str]) -> dict[str, dict[str, bytes]]:
    """Artifacts' files, to travel to the node that measures."""
    return {key: pack_folder(store.artifact_folder(key)) for key in keys}


@ray.remote
def latency(artifacts: dict[str, dict[str, bytes]], at: At, settings: Measure) -> dict[str, Any]:
    """{"latency": {key: Latency as a dict}, "threads", "batch"} of all artifacts, interleaved, and the whereabouts."""
    with tempfile.TemporaryDirectory(prefix="qray-measure-") as scratch:
        folders = _unpack(artifacts, Path(scratch))
        limit = len(artifacts) * (SECONDS_PER_ARTIFACT + 10 * settings.seconds)
        measured = measure_latency(folders, at[0], at[1], settings, limit)
    calls = {key: asdict(value) for key, value in measured.items()}
    return {"latency": calls, "threads": at[0], "batch": at[1], **whereabouts()}


@ray.remote
def costs(job: CostJob, checkpoint: bytes) -> dict[str, Any]:
    """What `measure_costs` returns, from a node that does nothing else."""
    limit = len(PARTS) * (SECONDS_PER_ARTIFACT + 10 * job.settings.seconds)
    return whereabouts() | measure_costs(job, checkpoint, limit)


@ray.remote
def memory(artifacts: dict[str, dict[str, bytes]], at: At, parallel: int) -> dict[str, dict[str, Any]]:
    """{key: {"peak_rss_mb", "started", "seconds"}}, or "unfinished" with the reason, and the whereabouts; memory,
    unlike latency, does not mind a neighbour."""
    here = whereabouts()

    def one(folder: Path) -> dict[str, Any]:
        started = time.time()
        found: dict[str, Any]
        try:
            found = {"peak_rss_mb": measure_memory(folder, at[0], at[1], 2 * SECONDS_PER_ARTIFACT)}
        except QrayError as error:
            found = {"peak_rss_mb": None, "unfinished": str(error)}
        return found | {"started": started, "seconds": time.time() - started} | here

    with tempfile.TemporaryDirectory(prefix="qray-memory-") as scratch, ThreadPoolExecutor(parallel) as pool:
        folders = _unpack(artifacts, Path(scratch))
        return dict(zip(folders, pool.map(one, folders.values()), strict=True))


def _unpack(artifacts: dict[str, dict[str, bytes]], root: Path) -> dict[str, Path]:
    for key, files in artifacts.items():
        unpack_folder(files, root / key)
    return {key: root / key for key in artifacts}
