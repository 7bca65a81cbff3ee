"""The side that nodes talk to: wire/proto/gpupool/v1/node.proto."""

from gpupool.wire.proto import quiet_forks

# Before any module here imports grpc.
quiet_forks()
