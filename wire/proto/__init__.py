"""What hostd and the controller tell each other: gpupool/v1/node.proto, and its messages."""

import os


def quiet_forks() -> None:
    """Call it before grpc is imported. Its handlers of fork() run in every child between fork and
    exec, and crash there when another thread is inside gRPC: seen as `Check failed:
    next_worker->state == KICKED` and as a segmentation fault of the child. We only fork to execute
    programs, which need none of it (https://github.com/grpc/grpc/blob/master/doc/fork_support.md).
    """
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
