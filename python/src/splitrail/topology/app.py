"""The Serve config of a topology without an inventory: the project's template, with Ansible's filters.

For looking at what a topology becomes, and for checking it against Ray and vLLM; what is deployed is rendered
by the role ``llm_serve``, from the same template.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2
from ansible.plugins.filter.core import FilterModule

from splitrail.topology.site import Site

# What the role's defaults are, and an address for documentation (RFC 5737).
_CLUSTER = {
    "proxy_location": "HeadOnly",
    "host": "192.0.2.1",
    "port": 8001,
    "front_resources": {},
    "health_check_period_s": 5,
    "health_check_timeout_s": 30,
    "drain_s": 600,
    "drain_check_s": 10,
}


def app_config(template: Path, served: Mapping[str, Any], site: Site) -> str:
    """The YAML text of a Serve config.

    ``template``: templates/serve/app.yaml.j2. ``served``: what ``splitrail.topology.serving`` returned for
    ``site``.
    """
    environment = jinja2.Environment(
        trim_blocks=True,
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701 - YAML, not HTML
    )
    environment.filters.update(FilterModule().filters())
    serve = {
        **_CLUSTER,
        "app_name": "llm-bench" if site.bench else "llm",
        "model_source": served["model"]["source"],
        "worker_bundle": dict(site.worker_bundle),
        "pool_resources": {pool: dict(site.pool_resources.get(pool, {})) for pool in served["pools"]},
        "env": dict(site.env),
    }
    return environment.from_string(template.read_text(encoding="utf-8")).render(topology=served, serve=serve)
