"""The messages of `gpupool/v1/node.proto`, and where each call is found.

The build turns the description into a file of descriptors (`cmake/Proto.cmake`); here they become
classes when they are first asked for. Nothing generated is imported, so any protobuf from 4.25 on
will do, whatever version built it.

Two layouts of that file, as for everything that is built: the installed package, and the build
folder of a checkout, or where GPUPOOL_NATIVE_DIR says.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_FILE = "generated/node.binpb"
_SERVICE = "gpupool.node.v1.Node"


class NotBuiltError(ImportError):
    """The descriptors are not there."""


@dataclass(frozen=True, slots=True)
class Call:
    """One call of the service."""

    name: str
    path: str  # "/gpupool.node.v1.Node/Register"
    request: Any  # the message classes
    reply: Any
    streams: bool  # it is answered by a stream


@dataclass(frozen=True, slots=True)
class NodeApi:
    """Messages by name, and calls by name."""

    service: str
    messages: Mapping[str, Any]
    calls: Mapping[str, Call]

    def __getattr__(self, name: str) -> Any:
        try:
            return self.messages[name]
        except KeyError:
            raise AttributeError(name) from None


@cache
def node_api() -> NodeApi:
    """Reads the descriptors, once. Raises NotBuiltError."""
    path = _find()
    files = descriptor_pb2.FileDescriptorSet.FromString(path.read_bytes())
    pool = descriptor_pool.DescriptorPool()  # our own: no other package's names are in the way
    for one in files.file:
        pool.Add(one)
    messages = {}
    for one in files.file:
        package = f"{one.package}." if one.package else ""
        for message in one.message_type:
            descriptor = pool.FindMessageTypeByName(package + message.name)
            messages[message.name] = message_factory.GetMessageClass(descriptor)
    service = pool.FindServiceByName(_SERVICE)
    calls = {
        method.name: Call(
            name=method.name,
            path=f"/{_SERVICE}/{method.name}",
            request=messages[method.input_type.name],
            reply=messages[method.output_type.name],
            streams=method.server_streaming,
        )
        for method in service.methods
    }
    return NodeApi(_SERVICE, messages, calls)


def _find() -> Path:
    named = os.environ.get("GPUPOOL_NATIVE_DIR", "")
    package = Path(__file__).absolute().parents[2]
    roots = [package / "native", package.parent / "build" / "native"]
    if named:
        roots = [Path(named).absolute()]
    for root in roots:
        if (root / _FILE).is_file():
            return root / _FILE
    places = " and ".join(str(root / _FILE) for root in roots)
    raise NotBuiltError(f"not found: {places}; in a checkout, `./run build` makes it")
