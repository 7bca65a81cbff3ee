"""A small language model of GPT's shape: a training step, and decoding in three forms."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpupool.bench.workloads.base import MODEL, Running, Setting, UnavailableError, Workload
from gpupool.bench.workloads.torch_tools import Torch


@dataclass(frozen=True)
class Shape:
    """Of the model."""

    layers: int
    width: int
    heads: int
    tokens: int  # that it knows
    context: int


_GPT = Shape(layers=12, width=768, heads=12, tokens=50304, context=256)  # GPT-2 small's
_SMALL = Shape(layers=2, width=32, heads=2, tokens=128, context=16)


def model(torch: Any, shape: Shape, device: str, dtype: Any) -> Any:
    """A decoder. Called with tokens; with a place, one token at that place, using its caches."""
    nn, functional = torch.nn, torch.nn.functional
    # A base that mypy does not know: torch is not there where the types are checked.
    base: Any = nn.Module

    class Block(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            width = shape.width
            self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
            self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
            self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
            cache = torch.zeros(1, shape.heads, shape.context, width // shape.heads)
            self.register_buffer("keys", cache.clone(), persistent=False)
            self.register_buffer("values", cache.clone(), persistent=False)

        def forward(self, x: Any, place: Any, mask: Any) -> Any:
            batch, length, width = x.shape
            parts = self.qkv(self.norm1(x)).view(batch, length, 3, shape.heads, -1)
            q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
            if place is None:
                y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
            else:
                self.keys.index_copy_(2, place, k)
                self.values.index_copy_(2, place, v)
                y = functional.scaled_dot_product_attention(
                    q, self.keys, self.values, attn_mask=mask
                )
            x = x + self.out(y.transpose(1, 2).reshape(batch, length, width))
            return x + self.down(functional.gelu(self.up(self.norm2(x))))

    class Model(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.token = nn.Embedding(shape.tokens, shape.width)
            self.place = nn.Embedding(shape.context, shape.width)
            self.blocks = nn.ModuleList(Block() for _ in range(shape.layers))
            self.norm = nn.LayerNorm(shape.width)
            self.register_buffer("places", torch.arange(shape.context), persistent=False)

        def forward(self, tokens: Any, place: Any = None) -> Any:
            if place is None:
                x, mask = self.token(tokens) + self.place(self.places[: tokens.shape[1]]), None
            else:
                x = self.token(tokens) + self.place(place)
                mask = (self.places <= place).view(1, 1, 1, -1)
            for block in self.blocks:
                x = block(x, place, mask)
            return functional.linear(self.norm(x), self.token.weight)

    torch.manual_seed(1)
    return Model().to(device, dtype)


def _train(setting: Setting) -> Running:
    """Forward, backward, AdamW, the loss read."""
    t = Torch(setting)
    shape = _SMALL if setting.small else _GPT
    batch = 2 if setting.small else 8
    tokens = t.torch.randint(0, shape.tokens, (batch, shape.context + 1))

    def trainer() -> Callable[[], float]:
        net = model(t.torch, shape, t.device, t.torch.float32)
        optimizer = t.torch.optim.AdamW(net.parameters(), lr=1e-3)

        def step() -> float:
            given = tokens.to(t.device, non_blocking=True)
            optimizer.zero_grad(set_to_none=True)
            with t.autocast():
                logits = net(given[:, :-1])
                loss = t.torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), given[:, 1:].flatten()
                )
            loss.backward()
            optimizer.step()
            return float(loss.item())

        return step

    def result() -> object:
        with t.torch.enable_grad():
            fresh = trainer()
            return t.torch.tensor([fresh() for _ in range(3)])

    return t.running(trainer(), result)


class Decoder:
    """One sequence, a token at a time; the program reads each, as one that prints them does."""

    def __init__(self, t: Torch) -> None:
        self.t = t
        shape = _SMALL if t.small else _GPT
        dtype = t.torch.bfloat16 if t.on_gpu else t.torch.float32
        self.net = model(t.torch, shape, t.device, dtype).eval()
        self.token = t.torch.zeros(1, 1, dtype=t.torch.long, device=t.device)
        self.place = t.torch.zeros(1, dtype=t.torch.long, device=t.device)
        self.logits: Any = None
        self._context = shape.context
        self._number = 0
        self.forward: Callable[[], None] = self.eager

    def eager(self) -> None:
        """The next token, from this one."""
        self.logits = self.net(self.token, self.place)
        self.token.copy_(self.logits[:, -1:].argmax(-1))
        self.place.add_(1)

    def step(self) -> int:
        """One token."""
        if self._number == self._context:
            self.restart()
        with self.t.torch.inference_mode():
            self.forward()
        self._number += 1
        return int(self.token.item())

    def restart(self) -> None:
        """An empty context."""
        with self.t.torch.inference_mode():
            self.token.zero_()
            self.place.zero_()
        self._number = 0

    def result(self) -> object:
        """Scores of a fresh sequence's first tokens."""
        self.restart()
        found = []
        for _ in range(4):
            self.step()
            found.append(self.logits.clone())
        return found


def _decode_eager(setting: Setting) -> Running:
    t = Torch(setting)
    decoder = Decoder(t)
    return t.running(decoder.step, decoder.result)


def _decode_compiled(setting: Setting) -> Running:
    t = Torch(setting)
    decoder = Decoder(t)
    if t.on_gpu and t.torch.cuda.get_device_capability() < (7, 0):
        raise UnavailableError("Triton needs compute capability 7.0")
    decoder.net = t.torch.compile(decoder.net, dynamic=False)
    return t.running(decoder.step, decoder.result)


def _decode_graph(setting: Setting) -> Running:
    t = Torch(setting, only_gpu=True)
    decoder = Decoder(t)
    torch = t.torch
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.inference_mode(), torch.cuda.stream(side):
        for _ in range(3):
            decoder.eager()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.inference_mode(), torch.cuda.graph(graph):
        decoder.eager()
    decoder.restart()
    decoder.forward = graph.replay
    return t.running(decoder.step, decoder.result)


WORKLOADS = (
    Workload("transformer_train", MODEL, _train, 2e-2, "torch", duration_factor=3),
    Workload("llm_decode_eager", MODEL, _decode_eager, 2e-2, "torch", duration_factor=2),
    Workload(
        *("llm_decode_compiled", MODEL, _decode_compiled, 3e-2, "torch"),
        duration_factor=2,
        native_first=True,
    ),
    Workload("llm_decode_graph", MODEL, _decode_graph, 2e-2, "torch", duration_factor=2),
)
