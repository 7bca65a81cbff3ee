"""The network of a host: bridges, veth pairs and rate limits, in namespaces of the tests' own."""
