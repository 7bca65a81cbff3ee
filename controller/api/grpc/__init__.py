"""The side that nodes talk to: wire/proto/gpupool/v1/node.proto."""
