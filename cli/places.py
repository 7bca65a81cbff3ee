"""`gpupool run --controller URL --vgpu NAME`: on which node that vGPU is, or may be."""

from __future__ import annotations

from gpupool.cli import settings
from gpupool.cli.backend import BackendError, UsageError

_TIMEOUT_S = 30.0


def endpoint(url: str, vgpu: str) -> str:
    """Where to dial for it. Raises BackendError."""
    chosen = settings.controller(settings.Said(controller=url))
    if chosen is None or chosen.token_file is None:
        # --token-file of `gpupool run` is for the node.
        raise UsageError(
            f"controller {url}: no token; {settings.path()} must name this controller and its "
            "token_file"
        )
    from gpupool.cli.rest_backend import RestBackend

    backend = RestBackend(chosen, _TIMEOUT_S)
    first, *others = vgpu.split(",")
    found = [place for place in backend.places(first) if place]
    for name in others:  # all of them at one node
        there = backend.places(name)
        found = [place for place in found if place in there]
    if not found:
        raise BackendError(
            f"no node has room for vGPU {vgpu} now, or tells where clients dial it; see `gpupool "
            f"vgpu show {vgpu} --controller {url}`"
        )
    return found[0]
