"""What hostd and the controller tell each other: gpupool/v1/node.proto, and its messages."""
