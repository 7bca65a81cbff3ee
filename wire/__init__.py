"""What guest and host share: the protocol, the description of the driver API, the generator."""
