"""Stand-in of RIXL's Python interface: finds and loads its plugins as the real one does."""

from __future__ import annotations

import ctypes
from pathlib import Path


class nixl_agent_config:
    """Which backends an agent starts."""

    def __init__(self, backends: list[str]) -> None:
        self.backends = backends


class nixl_agent:
    """Knows the plugins beside this file."""

    def __init__(self, name: str, config: nixl_agent_config) -> None:
        self.name = name
        self.files = {
            path.stem.removeprefix("libplugin_"): path for path in Path(__file__).parent.glob("*.so")
        }
        for backend in config.backends:
            self.get_plugin_mem_types(backend)

    def get_plugin_list(self) -> list[str]:
        """The plugins that were found."""
        return list(self.files)

    def get_plugin_mem_types(self, plugin: str) -> list[str]:
        """Load a plugin, with UCX behind it."""
        ctypes.CDLL(str(self.files[plugin]))
        return ["DRAM", "VRAM"]
