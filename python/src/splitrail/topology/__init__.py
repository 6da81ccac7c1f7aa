"""A topology: what is served, by how many engines of which kind. Data of ``inventories/topologies``.

``load`` finds one by its name, ``parse`` reads it and refuses what cannot be served anywhere, ``serving``
fits it to a release and a cluster and refuses what cannot be served there.
"""

from splitrail.topology.family import load, names
from splitrail.topology.schema import RESERVED_ENGINE_KEYS, Pool, Topology, TopologyError, parse
from splitrail.topology.serving import serving
from splitrail.topology.site import Site

__all__ = [
    "RESERVED_ENGINE_KEYS",
    "Pool",
    "Site",
    "Topology",
    "TopologyError",
    "load",
    "names",
    "parse",
    "serving",
]
