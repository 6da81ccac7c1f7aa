"""Serve configs of release ``h200`` through Ray Serve LLM on the GPUs of one host, and offer them load.

    python gpu_serve.py render CONFIGS.json TOPOLOGY... [--engines-a-gpu 1]
    python gpu_serve.py run CONFIGS.json MODEL OUT.json [--together] [--seconds 24] [--rates 8000/512=1,2]

``render`` runs where the suite is: it writes the very config that `splitrail serve` would deploy, for each
topology by its name (qwen3-14b-1p1d, ...; with ``@vllm`` behind it in vLLM's own KV layout), with dummy
weights and without prefix caching, and the environment of inventory h200. ``run`` wants nothing of the suite
but python/src on PYTHONPATH (for the elastic ingress), the packages of the release, aiohttp, the GPUs and a
folder MODEL (gpu_model.py). It starts a Ray head, deploys one config
after the other as the suite's role does, waits until it runs, offers each rate (gpu_pd.py's client: Poisson
arrivals, fixed lengths, random prompts) and writes OUT.json: TTFT, TPOT and E2E percentiles in ms, and what
NIXL moved by the metrics that Ray exports. ``--engines-a-gpu`` lets engines share a GPU where there are too
few: that shows that a config starts and answers, and times only against each other. ``--together`` deploys
all configs side by side, as applications of one Serve, and offers each the same arrivals at the same time:
what differs then is the config alone.
Exit code 1 when a config did not come to run or failed the warm-up; the reason that Serve gives is printed,
and what the engines' own logs say.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

API = "http://127.0.0.1:8265/api/serve/applications/"
METRICS_PORT = 8080
RUNNING_S = 540
# How often Ray exports metrics (otherwise every 10 s), and until all have come.
EXPORT_MS, EXPORT_S = 2000, 6
RATES = ("8000/512=1,1.5,2", "16000/256=0.5,1")
# KV cache of an engine that shares its GPU: named, because engines that start at once and measure what is
# free count one another's memory. Some 150,000 tokens of Qwen3-14B.
SHARED_KV_BYTES = 24 * 2**30


def render(out: Path, names: list[str], engines_a_gpu: int) -> None:
    """Write the configs of topologies, and what Ray's node is started with."""
    import yaml  # noqa: PLC0415  # not there where `run` runs

    from splitrail.topology import Site, load, serving  # noqa: PLC0415  # as above
    from splitrail.topology.app import app_config  # noqa: PLC0415  # as above

    root = Path(__file__).resolve().parents[2]
    inventories = root / "inventories"
    release = yaml.safe_load((inventories / "releases/h200.yml").read_text(encoding="utf-8"))
    transport = yaml.safe_load(
        (inventories / "h200/group_vars/all/transport.yml").read_text(encoding="utf-8")
    )
    site = Site(release=release, env=release["env"], bench=True)
    found: dict[str, Any] = {"node_env": transport["ucx_env"], "configs": {}}
    for name in names:
        topology, _, layout = name.partition("@")
        raw = load(topology, inventories / "topologies")
        raw["engine"] = {**raw["engine"], "enable_prefix_caching": False}
        if layout == "vllm":
            raw["engine"]["block_size"] = 16
            raw["kv_transfer"] = {"extra": {"enable_cross_layers_blocks": "False"}}
        text = app_config(root / "templates/serve/app.yaml.j2", serving(raw, site), site)
        config = yaml.safe_load(text)
        if engines_a_gpu > 1:
            share_gpus(config, engines_a_gpu)
        found["configs"][name] = config
    out.write_text(json.dumps(found, indent=1), encoding="utf-8")


def share_gpus(config: dict[str, Any], engines_a_gpu: int) -> None:
    """Give each engine of a config a part of a GPU."""
    for one in [one for app in config["applications"] for one in llm_configs(app)]:
        for bundle in one["placement_group_config"]["bundles"]:
            bundle["GPU"] /= engines_a_gpu
        one["engine_kwargs"].update(
            gpu_memory_utilization=round(0.9 / engines_a_gpu, 2), kv_cache_memory_bytes=SHARED_KV_BYTES
        )
        # Ray reads it off the bundles, too late for vLLM's own process of the engine.
        one["runtime_env"]["env_vars"]["VLLM_RAY_PER_WORKER_GPUS"] = str(1 / engines_a_gpu)


def call(method: str, body: object = None) -> dict[str, Any]:
    """Ask Serve's REST interface. Raises OSError."""
    request = urllib.request.Request(  # http, above
        API,
        data=None if body is None else json.dumps(body).encode(),
        method=method,
        headers={"Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=180) as answer:  # noqa: S310  # http, above
            text = answer.read()
    except urllib.error.HTTPError as error:
        raise OSError(f"{method} {API}: {error.code}: {error.read()[-1500:].decode()}") from error
    return json.loads(text) if text.strip() else {}


def deploy(config: dict[str, Any]) -> float:
    """Deploy a config and wait; returns seconds. Raises RuntimeError with what Serve says."""
    began = time.monotonic()
    call("PUT", config)
    while True:
        apps = call("GET").get("applications", {})
        states = [app["status"] for app in apps.values()]
        if states and set(states) == {"RUNNING"}:
            return time.monotonic() - began
        if "DEPLOY_FAILED" in states or time.monotonic() - began > RUNNING_S:
            said = [
                f"{name}: {one['status']}: {one['message'][-1500:]}"
                for app in apps.values()
                for name, one in [("application", app), *app["deployments"].items()]
            ]
            raise RuntimeError("\n".join(said) or "Serve reports no application")
        time.sleep(2)  # between two questions


def engines_said() -> str:
    """The errors in the logs of Ray's workers: Serve says that an engine died, they say of what."""
    lines = []
    for log in sorted(Path("/tmp/ray/session_latest/logs").glob("worker-*")):  # noqa: S108  # where Ray writes
        text = log.read_text(errors="replace").splitlines()
        errors = [line for line in text if re.search(r"\b\w*(Error|ERROR)\b", line)]
        lines += [f"{log.name}: {line[:400]}" for line in errors[-6:]]
    return "\n".join(lines)


def take_away() -> None:
    """End Serve, and wait until its engines are gone from the GPUs."""
    call("DELETE")
    while call("GET").get("applications"):
        time.sleep(1)
    time.sleep(5)  # an engine's process outlives its actor by a moment


def nixl() -> dict[str, float]:
    """What NIXL has moved so far, by the names of gpu_pd."""
    import gpu_pd  # noqa: PLC0415  # imports aiohttp, which `render` does not need

    wanted = {f"ray_{name.replace(':', '_')}": key for key, name in gpu_pd.NIXL.items()}
    found = dict.fromkeys(gpu_pd.NIXL, 0.0)
    address = f"http://127.0.0.1:{METRICS_PORT}/metrics"
    with urllib.request.urlopen(address, timeout=20) as answer:  # http, above
        for line in answer.read().decode().splitlines():
            key = wanted.get(line.partition("{")[0])
            if key:
                found[key] += float(line.rsplit(" ", 1)[1])
    return found


def moved_since(before: dict[str, float]) -> dict[str, float]:
    """A transfer's means since a reading of `nixl`, once Ray has exported all; it does not say when.

    Ray puts each figure in the middle of its histogram's bucket, so they are rough.
    """
    import gpu_pd  # noqa: PLC0415  # as above

    time.sleep(EXPORT_S)
    return gpu_pd.moved(before, nixl())


def together(configs: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """One config of several, each application by a route and with side-channel ports of its own."""
    applications = []
    for number, config in enumerate(configs.values()):
        app = json.loads(json.dumps(config["applications"][0]))
        app.update(name=f"app{number}", route_prefix=f"/{number}")
        for one in llm_configs(app):
            base = one["experimental_configs"].get("NIXL_SIDE_CHANNEL_PORT_BASE")
            if base:
                one["experimental_configs"]["NIXL_SIDE_CHANNEL_PORT_BASE"] = base + 4000 * number
        applications.append(app)
    return {**next(iter(configs.values())), "applications": applications}


def llm_configs(app: dict[str, Any]) -> list[dict[str, Any]]:
    """The engines' configs of an application."""
    own = [one for key, one in app["args"].items() if key.endswith("_config") and "engine_kwargs" in one]
    return own + app["args"].get("llm_configs", [])


async def offer(
    fronts: list[Any], workload: dict[str, int], rate: float, seconds: float, model: str
) -> list[Any]:
    """The same arrivals to every front, at the same time; a list of requests each."""
    import asyncio  # noqa: PLC0415  # with the next

    import gpu_pd  # noqa: PLC0415  # imports aiohttp, which `render` does not need

    plan = {"model": model, "vocabulary": 2048}
    return await asyncio.gather(
        *(gpu_pd.offer(([], [front]), workload, rate, seconds, plan) for front in fronts)
    )


def measure(
    names: list[str], config: dict[str, Any], rates: list[str], seconds: float
) -> list[dict[str, Any]]:
    """Offer every rate of every workload to what runs; prints and returns a point a rate and application."""
    import asyncio  # noqa: PLC0415  # with the next
    from types import SimpleNamespace  # noqa: PLC0415

    import gpu_pd  # noqa: PLC0415  # as above

    base = f"http://127.0.0.1:{config['http_options']['port']}"
    fronts: list[Any] = [
        SimpleNamespace(url=f"{base}{app['route_prefix'].rstrip('/')}", outstanding=0)
        for app in config["applications"]
    ]
    model = llm_configs(config["applications"][0])[0]["model_loading_config"]["model_id"]
    # The first requests make connections and compile kernels. What they moved, and how fast, is said at once:
    # a run may end before its first point.
    before, began = nixl(), time.monotonic()
    warm = asyncio.run(offer(fronts, {"isl": 2000, "osl": 8}, 4.0, 8.0, model))
    took = time.monotonic() - began
    if errors := [one.error for requests in warm for one in requests if one.error]:
        raise RuntimeError(f"{len(errors)} requests of the warm-up failed: {errors[0]}")
    sys.stdout.write(f"warm-up: {took:.1f} s, KV {moved_since(before)}\n")
    sys.stdout.flush()
    points = []
    for text in rates:
        lengths, _, offered = text.partition("=")
        isl, osl = (int(part) for part in lengths.split("/"))
        for rate in map(float, offered.split(",")):
            before = nixl()
            answers = asyncio.run(offer(fronts, {"isl": isl, "osl": osl}, rate, seconds, model))
            kv = moved_since(before)  # of all applications together
            for name, requests in zip(names, answers, strict=True):
                point = {
                    **{"config": name, "isl": isl, "osl": osl, "qps": rate},
                    **gpu_pd.summary(requests, osl, seconds / 4),
                    "kv": kv,
                }
                sys.stdout.write(json.dumps(point) + "\n")
                sys.stdout.flush()
                points.append(point)
    return points


def run(given: argparse.Namespace) -> int:
    """Deploy and measure each config."""
    rendered = json.loads(given.configs.read_text(encoding="utf-8"))
    environment = {
        **os.environ,
        **rendered["node_env"],
        "HF_HUB_OFFLINE": "1",
        "RAY_num_prestart_python_workers": "0",
        "RAY_metrics_report_interval_ms": str(EXPORT_MS),
    }
    start = [
        *("ray", "start", "--head", "--disable-usage-stats", "--node-ip-address=127.0.0.1"),
        *("--dashboard-host=127.0.0.1", f"--metrics-export-port={METRICS_PORT}", '--resources={"head":1}'),
    ]
    subprocess.run(start, env=environment, check=True, stdout=subprocess.DEVNULL)
    good, results = True, []
    try:
        configs = rendered["configs"]
        turns = [list(configs)] if given.together else [[name] for name in configs]
        for names in turns:
            name, config = "+".join(names), together({one: configs[one] for one in names})
            text = json.dumps({**config, "http_options": {"host": "127.0.0.1", "port": 8000}})
            source = model_sources(config)[0]
            ours = json.loads(text.replace(json.dumps(source), json.dumps(str(given.model.resolve()))))
            try:
                seconds = deploy(ours)
                sys.stdout.write(f"{name} runs after {seconds:.0f} s\n")
                sys.stdout.flush()
                points = measure(names, ours, given.rates, given.seconds)
                results.append({"config": name, "running_s": round(seconds, 1), "points": points})
            except RuntimeError as error:
                good = False
                sys.stdout.write(f"{name} does not serve:\n{error}\n{engines_said()}\n")
                results.append({"config": name, "error": str(error)})
            given.out.write_text(json.dumps(results, indent=1), encoding="utf-8")
            take_away()
    finally:
        subprocess.run(["ray", "stop", "--force"], check=False, stdout=subprocess.DEVNULL)
    return 0 if good else 1


def model_sources(config: object) -> list[str]:
    """Every ``model_source`` of a config."""
    if isinstance(config, dict):
        own = [config["model_source"]] if "model_source" in config else []
        return own + [source for value in config.values() for source in model_sources(value)]
    return [source for value in config for source in model_sources(value)] if isinstance(config, list) else []


def main() -> int:
    """Run what the command line says."""
    parser = argparse.ArgumentParser(description="Ray Serve LLM on the GPUs of one host.")
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("render")
    one.add_argument("out", type=Path)
    one.add_argument("topologies", nargs="+")
    one.add_argument("--engines-a-gpu", type=int, default=1, help="engines that share a GPU")
    other = commands.add_parser("run")
    other.add_argument("configs", type=Path)
    other.add_argument("model", type=Path)
    other.add_argument("out", type=Path)
    other.add_argument("--together", action="store_true", help="all configs at once, side by side")
    other.add_argument("--seconds", type=float, default=24)
    other.add_argument("--rates", nargs="+", default=list(RATES), help="ISL/OSL=RATE,RATE in requests/s")
    given = parser.parse_args()
    if given.command == "render":
        render(given.out, given.topologies, given.engines_a_gpu)
        return 0
    return run(given)


if __name__ == "__main__":
    sys.exit(main())
