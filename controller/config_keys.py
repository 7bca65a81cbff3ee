"""Every key of the controller's configuration, with its default and what may be written.

The documentation's source too: tests/controller/test_config.py holds docs/controller.md to it.
"""

from __future__ import annotations

from gpupool.wire.log import LEVELS
from gpupool.wire.settings import Key

KEYS: tuple[Key, ...] = (
    Key("listen", str, "127.0.0.1:9180", "where REST is served: address:port"),
    Key(
        "insecure",
        bool,
        False,
        "listen without TLS on an address that others reach: tokens then travel in clear",
    ),
    Key("tls.certificate", str, "", "absolute path of a PEM file: certificate and its chain"),
    Key("tls.key", str, "", "absolute path of a PEM file: the certificate's key"),
    Key(
        "nodes.listen",
        str,
        "",
        "where nodes come in, by gRPC: address:port; with the certificate of tls.*, or none (see "
        "insecure). Empty: no nodes are served here",
    ),
    Key(
        "nodes.client_ca",
        str,
        "",
        "absolute path of a PEM file: nodes then need a certificate that this authority signed, "
        "with the node's name as its common name, in place of a token",
    ),
    Key(
        "database.url",
        str,
        "sqlite:////var/lib/gpupool/controller.db",
        "`sqlite:////ABSOLUTE/PATH`, or `postgresql://USER@HOST:PORT/NAME` for several replicas",
    ),
    Key(
        "database.password_file",
        str,
        "",
        "absolute path of a file that only the controller may read, with PostgreSQL's password",
    ),
    Key("database.connections", int, 16, "to the database, at most", low=2, high=256),
    Key(
        "database.timeout_s",
        int,
        5,
        "for a connection, a lock or a statement; then the answer is 503",
        low=1,
        high=60,
    ),
    Key(
        "bootstrap.token_file",
        str,
        "/var/lib/gpupool/admin-token",
        "where the first admin token is written (mode 0600) while there is no token at all; empty: "
        "nowhere, nobody can ask anything then",
    ),
    Key("licence.file", str, "", "absolute path of a licence; empty: none (10000 GPUs, no end)"),
    Key("licence.public_key", str, "", "of whoever signs licences: 64 hexadecimal digits"),
    Key(
        "limits.requests_per_s",
        int,
        200,
        "of one token at one replica; then 429",
        low=1,
        high=1_000_000,
    ),
    Key("limits.burst", int, 400, "requests of one token at once", low=1, high=1_000_000),
    Key("limits.event_followers", int, 64, "streams of events at one replica", low=1, high=10_000),
    Key(
        "lease.node_s",
        int,
        30,
        "a node that is silent for so long is lost",
        low=5,
        high=3600,
    ),
    Key("keep.events_days", int, 7, "how long events are kept", low=1, high=3650),
    Key("keep.audit_days", int, 365, "how long the audit log is kept", low=1, high=36500),
    Key(
        "keep.answers_hours",
        int,
        24,
        "how long a repeated Idempotency-Key gets the same answer",
        low=1,
        high=720,
    ),
    Key("metrics.public", bool, False, "/metrics answers without a token"),
    Key("log.level", str, "info", "what is logged", choices=tuple(LEVELS)),
    Key("log.format", str, "text", "form of the lines on stderr", choices=("text", "json")),
    Key(
        "log.priorities",
        str,
        "auto",
        "journald's priority before each line; auto: where stderr is the journal",
        choices=("auto", "yes", "no"),
    ),
)
