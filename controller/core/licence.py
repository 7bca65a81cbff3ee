"""What a licence allows. Its signature is checked at the edge (`gpupool.controller.licence`)."""

from __future__ import annotations

from dataclasses import dataclass

from gpupool.controller.core.errors import Kind, RefusedError

FREE_GPUS = 10_000  # without a licence: as many GPUs, for ever
# The vendor's public keys (hexadecimal, 32 bytes) that a build trusts beside the configured one.
VENDOR_KEYS: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Licence:
    """How many GPUs may be given out and until when (milliseconds; None: for ever)."""

    gpus: int = FREE_GPUS
    expires_ms: int | None = None
    holder: str = ""
    id: str = ""

    def expired(self, now_ms: int) -> bool:
        """Whether new allocations are refused."""
        return self.expires_ms is not None and now_ms >= self.expires_ms

    def check(self, now_ms: int) -> None:
        """Raises RefusedError where nothing new may be given out. What runs goes on."""
        if self.expired(now_ms):
            raise RefusedError(
                Kind.LICENCE,
                f"The licence {self.id!r} has expired: nothing new is given out. What runs goes "
                "on. Put a new licence file in its place (docs/controller.md); no restart is "
                "needed.",
                {"licence": self.id},
            )


NO_LICENCE = Licence()
