"""Machines of an inventory from a controller: its nodes, with their labels and GPUs."""

from __future__ import annotations

import re
from typing import Any

DOCUMENTATION = """
name: controller
short_description: The nodes of a gpupool controller
description:
  - Each node is a host in the group C(gpupool_hosts) and in one for its state, C(gpupool_ready)
    or C(gpupool_lost); cordoned ones are in C(gpupool_cordoned), too.
  - The variables C(gpupool_node) and C(gpupool_gpus) are what the controller shows; keyed_groups
    may use them.
  - The file's name ends in gpupool.yml or gpupool.yaml.
version_added: 0.1.0
author: the gpupool project (@gpupool)
extends_documentation_fragment:
  - constructed
options:
  plugin:
    description: This plugin's name.
    type: str
    required: true
    choices: [gpupool.gpupool.controller]
  controller:
    description: The controller's REST address.
    type: str
    required: true
    env:
      - name: GPUPOOL_CONTROLLER
  token_file:
    description: File with an operator's or admin's token, mode 0600.
    type: path
    required: true
  ca_file:
    description: Who signed the controller's certificate, where this system does not know them.
    type: path
"""

EXAMPLES = """
# nodes.gpupool.yml
plugin: gpupool.gpupool.controller
controller: https://controller.example.org:9180
token_file: ~/.config/gpupool/operator-token
keyed_groups:
  - {key: gpupool_node.labels.zone, prefix: zone}
groups:
  h100: gpupool_gpus | selectattr('model', 'search', 'H100') | length > 0
"""

from ansible.errors import AnsibleParserError  # noqa: E402 (documentation comes first)
from ansible.utils.unsafe_proxy import wrap_var  # noqa: E402

from ansible.plugins.inventory import BaseInventoryPlugin, Constructable  # noqa: E402

# isort: split
from ansible_collections.gpupool.gpupool.plugins.module_utils.rest import (  # noqa: E402
    Rest,
    RestError,
)

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class InventoryModule(BaseInventoryPlugin, Constructable):
    """The plugin."""

    NAME = "gpupool.gpupool.controller"

    def verify_file(self, path: str) -> bool:
        """Whether this file is for us."""
        ours = path.endswith(("gpupool.yml", "gpupool.yaml"))
        return bool(super().verify_file(path)) and ours

    def parse(self, inventory: Any, loader: Any, path: str, cache: bool = True) -> None:
        """Asks the controller. Raises AnsibleParserError."""
        super().parse(inventory, loader, path, cache)
        self._read_config_data(path)
        try:
            rest = Rest(
                self.get_option("controller"),
                self.get_option("token_file"),
                self.get_option("ca_file") or "",
            )
            nodes = list(rest.all("/nodes"))
            gpus = list(rest.all("/gpus"))
        except RestError as error:
            raise AnsibleParserError(f"{path}: {error}") from error
        for group in ("gpupool_hosts", "gpupool_ready", "gpupool_lost", "gpupool_cordoned"):
            self.inventory.add_group(group)
        for node in nodes:
            self._add(node, [gpu for gpu in gpus if gpu["node_id"] == node["id"]])

    def _add(self, node: dict[str, Any], gpus: list[dict[str, Any]]) -> None:
        name = node["name"]
        if not _NAME.fullmatch(name):
            raise AnsibleParserError(f"the controller has a node {name!r}, which is no host's name")
        self.inventory.add_host(name, group="gpupool_hosts")
        self.inventory.add_child(f"gpupool_{node['state']}", name)
        if node["cordoned"]:
            self.inventory.add_child("gpupool_cordoned", name)
        # Nodes choose their labels and name their cards: text, never a template to fill in here.
        facts = wrap_var({"gpupool_node": node, "gpupool_gpus": gpus})
        for key, value in facts.items():
            self.inventory.set_variable(name, key, value)
        strict = self.get_option("strict")
        self._set_composite_vars(self.get_option("compose"), facts, name, strict=strict)
        self._add_host_to_composed_groups(self.get_option("groups"), facts, name, strict=strict)
        self._add_host_to_keyed_groups(self.get_option("keyed_groups"), facts, name, strict=strict)
