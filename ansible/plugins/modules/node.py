#!/usr/bin/python
"""Drains a node of a controller, keeps new vGPUs away from it, and waits for it."""

from __future__ import annotations

import time
from typing import Any

DOCUMENTATION = """
module: node
short_description: Drains, undrains, cordons and uncordons a node of a gpupool controller
description:
  - Asks the controller's REST interface, so it usually runs where Ansible runs (delegate_to).
  - Programs outlive a restart of hostd; draining is for what ends them, such as a reboot or a new
    driver.
version_added: 0.1.0
author: the gpupool project (@gpupool)
options:
  controller:
    description: The controller's REST address.
    type: str
    required: true
  token_file:
    description: File with an operator's or admin's token, mode 0600.
    type: path
    required: true
  ca_file:
    description: Who signed the controller's certificate, where this system does not know them.
    type: path
  name:
    description: The node.
    type: str
    required: true
  state:
    description:
      - C(cordoned) keeps new vGPUs away; what is there stays.
      - C(drained) also keeps new programs away, and waits until none is left.
      - C(undrained) lets new vGPUs and programs come again.
      - C(ready) waits until the controller has heard of the node once more, as after a restart.
      - C(uncordoned) lets new vGPUs come again.
    type: str
    choices: [cordoned, drained, ready, uncordoned, undrained]
    required: true
  timeout_s:
    description: How long to wait, for C(drained) and C(ready).
    type: int
    default: 3600
  deadline_s:
    description: For C(drained), end what still runs after so long. Without it nothing is ended.
    type: int
attributes:
  check_mode:
    description: Says whether it would change anything, and waits for nothing.
    support: full
"""

EXAMPLES = """
- name: Empty a node before its driver is replaced
  gpupool.gpupool.node:
    controller: https://controller.example.org:9180
    token_file: ~/.config/gpupool/admin-token
    name: gpu7
    state: drained
  delegate_to: localhost
"""

RETURN = """
node:
  description: The node as the controller shows it.
  returned: success
  type: dict
was_cordoned:
  description: Whether it had been cordoned before.
  returned: success
  type: bool
was_drained:
  description: Whether it had been drained before, or was being drained.
  returned: success
  type: bool
"""

from ansible.module_utils.basic import AnsibleModule  # noqa: E402 (documentation comes first)

# isort: split
from ansible_collections.gpupool.gpupool.plugins.module_utils.rest import (  # noqa: E402
    Rest,
    RestError,
)

_POLL_S = 2.0
_TOLD = 5  # sessions in an error


def find(rest: Rest, name: str) -> dict[str, Any]:
    """Raises RestError."""
    for node in rest.all("/nodes"):
        if name in (node["name"], node["id"]):
            return node
    raise RestError(
        f"the controller knows no node {name}; `gpupool node list` shows them, and "
        "gpupool_host_node_name says what a host is called"
    )


def sessions(rest: Rest, node: dict[str, Any]) -> list[str]:
    """Of this node, in words; one that uses several vGPUs counts once. Raises RestError."""
    found = {
        one["id"]: f"{one['node']}/{one['number']} ({one['program']})"
        for one in rest.all("/sessions")
        if one["node_id"] == node["id"]
    }
    return sorted(found.values())


def drained(
    rest: Rest, node: dict[str, Any], timeout_s: float, deadline_s: int | None
) -> dict[str, Any]:
    """Begins it and waits. Raises RestError."""
    rest.ask("PUT", f"/nodes/{node['id']}/drain", {"deadline_s": deadline_s})
    ends_s = time.monotonic() + timeout_s
    while (now := rest.ask("GET", f"/nodes/{node['id']}"))["drain"] != "drained":
        if now["drain"] == "none":
            raise RestError(f"somebody has undrained node {node['name']} meanwhile")
        if time.monotonic() > ends_s:
            left = sessions(rest, node)
            more = f" and {len(left) - _TOLD} more" if len(left) > _TOLD else ""
            raise RestError(
                f"after {timeout_s:g} s node {node['name']} still has sessions: "
                f"{', '.join(left[:_TOLD])}{more}. Wait for longer, give the drain a deadline_s, "
                "or end them (`gpupool session end`). The drain goes on"
            )
        time.sleep(_POLL_S)
    return now


def heard(rest: Rest, node: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """Waits until it has given a new sign of life. Raises RestError."""
    deadline_s = time.monotonic() + timeout_s
    while True:
        now = rest.ask("GET", f"/nodes/{node['id']}")
        if now["state"] == "ready" and now["heard_at"] != node["heard_at"]:
            return now
        if time.monotonic() > deadline_s:
            raise RestError(
                f"in {timeout_s:g} s the controller has not heard of node {node['name']}; its "
                "hostd's log says why"
            )
        time.sleep(_POLL_S)


def would_change(node: dict[str, Any], state: str) -> bool:
    """Whether the node is not so yet."""
    if state in ("cordoned", "uncordoned"):
        return bool(node["cordoned"]) != (state == "cordoned")
    if state == "ready":
        return False
    return bool(node["drain"] != "none") != (state == "drained")


def reach(rest: Rest, node: dict[str, Any], given: dict[str, Any]) -> dict[str, Any]:
    """Makes it so; the node then. Raises RestError."""
    state = given["state"]
    if state == "ready":
        return heard(rest, node, given["timeout_s"])
    if state == "drained":  # also where it is: whoever has waited in vain waits again
        if node["drain"] == "drained":
            return node
        return drained(rest, node, given["timeout_s"], given["deadline_s"])
    if not would_change(node, state):
        return node
    if state == "undrained":
        return rest.ask("DELETE", f"/nodes/{node['id']}/drain")
    return rest.ask("PATCH", f"/nodes/{node['id']}", {"cordoned": state == "cordoned"})


def main() -> None:
    """The module."""
    module = AnsibleModule(
        argument_spec={
            "controller": {"type": "str", "required": True},
            "token_file": {"type": "path", "required": True, "no_log": False},  # a path
            "ca_file": {"type": "path"},
            "name": {"type": "str", "required": True},
            "state": {
                "type": "str",
                "required": True,
                "choices": ["cordoned", "drained", "ready", "uncordoned", "undrained"],
            },
            "timeout_s": {"type": "int", "default": 3600},
            "deadline_s": {"type": "int"},
        },
        supports_check_mode=True,
    )
    given = module.params
    try:
        rest = Rest(given["controller"], given["token_file"], given["ca_file"] or "")
        node = find(rest, given["name"])
        before = node
        changed = would_change(node, given["state"])
        if not module.check_mode:
            node = reach(rest, node, given)
    except RestError as error:
        module.fail_json(msg=str(error))
    module.exit_json(
        changed=changed,
        was_cordoned=before["cordoned"],
        was_drained=before["drain"] != "none",
        node=node,
    )


if __name__ == "__main__":
    main()
