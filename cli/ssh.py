"""A machine behind ssh, by Paramiko. Host keys are verified, passwords are not used."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpupool.cli.backend import UsageError
from gpupool.cli.remote import Ended, RemoteError

if TYPE_CHECKING:
    import paramiko

SYSTEM_KNOWN_HOSTS = Path("/etc/ssh/ssh_known_hosts")
_CONNECT_S = 20.0
_CHUNK = 1 << 16


@dataclass(frozen=True, slots=True)
class Address:
    """Where and as whom to log in."""

    host: str
    port: int = 22
    user: str = "root"
    key: Path | None = None  # else those of the agent and of ~/.ssh
    known_hosts: Path = Path("~/.ssh/known_hosts")
    accept_new: bool = False  # as ssh's StrictHostKeyChecking=accept-new


class SshMachine:
    """A connection; commands run as root, through sudo where another user logs in."""

    def __init__(self, address: Address) -> None:
        """Connects. Raises RemoteError, UsageError."""
        self._address = address
        self._client = _connect(address)
        self._prefix = [] if address.user == "root" else ["sudo", "-n", "--"]

    @property
    def name(self) -> str:
        """The host."""
        return self._address.host

    def close(self) -> None:
        """Ends the connection."""
        self._client.close()

    def run(self, words: Sequence[str], given: bytes = b"", timeout_s: float = 60) -> Ended:
        """One command. `timeout_s` bounds each wait for it. Raises RemoteError."""
        command = shlex.join([*self._prefix, *words])
        try:
            transport = self._client.get_transport()
            if transport is None:
                raise EOFError
            channel = transport.open_session(timeout=_CONNECT_S)
            with channel:
                channel.settimeout(timeout_s)
                channel.exec_command(command)
                with suppress(OSError):  # it has left without reading; its exit code says why
                    for start in range(0, len(given), _CHUNK):
                        channel.sendall(given[start : start + _CHUNK])
                    channel.shutdown_write()
                out, error = _drain(channel)
                if not channel.status_event.wait(timeout_s):
                    raise TimeoutError
                return Ended(channel.recv_exit_status(), _text(out), _text(error))
        except TimeoutError as error:
            raise RemoteError(f"{self.name}: no answer in {timeout_s:g} s to: {command}") from error
        except (OSError, EOFError, _failure()) as error:
            raise RemoteError(f"{self.name}: the connection is lost ({error!r})") from error


def _drain(channel: paramiko.Channel) -> tuple[bytes, bytes]:
    """Both outputs to their ends. Two MiB of errors (Paramiko's window) would stop a command until
    the timeout; none of ours says so much.
    """
    out, error = bytearray(), bytearray()
    while True:
        while channel.recv_stderr_ready():
            error += channel.recv_stderr(_CHUNK)
        part = channel.recv(_CHUNK)
        if not part:
            break
        out += part
    while rest := channel.recv_stderr(_CHUNK):
        error += rest
    return bytes(out), bytes(error)


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", errors="replace")


def _connect(address: Address) -> paramiko.SSHClient:
    try:
        import paramiko
    except ImportError as error:
        raise UsageError("Paramiko is not installed: pip install 'gpupool[ssh]'") from error
    client = paramiko.SSHClient()
    known = address.known_hosts.expanduser()
    for file in (SYSTEM_KNOWN_HOSTS, known):
        if file.exists():
            client.load_system_host_keys(str(file))
    client.set_missing_host_key_policy(_policy(address, known))
    where = f"{address.user}@{address.host}"
    try:
        client.connect(
            address.host,
            port=address.port,
            username=address.user,
            key_filename=None if address.key is None else str(address.key.expanduser()),
            allow_agent=address.key is None,
            look_for_keys=address.key is None,
            timeout=_CONNECT_S,
            banner_timeout=_CONNECT_S,
            auth_timeout=_CONNECT_S,
        )
    except paramiko.BadHostKeyException as error:
        raise RemoteError(
            f"{address.host} has another key ({_fingerprint(error.key)}) than {known} says: "
            "somebody may be in between. Where it was installed anew: "
            f"ssh-keygen -R {address.host}, then compare its key"
        ) from error
    except paramiko.PasswordRequiredException as error:
        raise RemoteError(
            f"{where}: the key has a passphrase; ssh-add it, since none is asked for here"
        ) from error
    except paramiko.AuthenticationException as error:
        raise RemoteError(
            f"{where} did not let us in: name a --key, or ssh-add one that is in its "
            "authorized_keys; passwords are not used"
        ) from error
    except (paramiko.SSHException, OSError) as error:
        raise RemoteError(f"{where}, port {address.port}, is not reached: {error}") from error
    return client


def _policy(address: Address, known: Path) -> Any:
    import paramiko

    # paramiko has no types.
    class Policy(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
        """Unknown hosts: refused, or written down."""

        def missing_host_key(self, _client: Any, hostname: str, key: Any) -> None:
            """Raises RemoteError."""
            if not address.accept_new:
                raise RemoteError(
                    f"{address.host} is not in {known}. Its key is {_fingerprint(key)}: compare it "
                    "with `ssh-keygen -lf` of /etc/ssh/ssh_host_*_key.pub on that machine, then "
                    "add it by logging in with ssh once, or with --accept-new"
                )
            known.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with known.open("a", encoding="ascii") as file:  # others' lines stay as they are
                file.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")

    return Policy()


def _fingerprint(key: Any) -> str:
    digest = base64.b64encode(hashlib.sha256(key.asbytes()).digest()).decode().rstrip("=")
    return f"{key.get_name()} SHA256:{digest}"


def _failure() -> type[Exception]:
    import paramiko

    failure: type[Exception] = paramiko.SSHException
    return failure
