"""The guest that the other tests of this folder rely on."""

from __future__ import annotations

import signal
from pathlib import Path

from tests.vm import kernel
from tests.vm.machine import Machine


def test_programs_of_the_host_run_in_a_guest(folder: Path, guest_kernel: kernel.Kernel) -> None:
    machine = Machine(folder, guest_kernel)
    try:
        machine.start()
        machine.wait_ready()
        text = "import os; print(os.uname().release, os.path.exists('/dev/nvidiactl'))"
        version = guest_kernel.image.name.removeprefix("vmlinuz-")
        assert machine.python(text).split() == [version, "False"]
        # What a guest writes stays in the guest.
        note = f"{Path(__file__).parent}/written"
        assert machine.run(["/bin/sh", "-c", f"echo one >{note} && cat {note}"]).out == "one\n"
        assert not Path(note).exists()
        failed = machine.run(["/bin/sh", "-c", "echo why >&2; exit 3"])
        assert (failed.code, failed.err) == (3, "why\n")
        assert machine.run(["/no/such/program"]).code == 127
        waiting = machine.begin(["/bin/cat"])
        waiting.write("line\n")
        assert waiting.read_line() == "line"
        waiting.signal(signal.SIGTERM)
        assert waiting.wait() == -signal.SIGTERM
    finally:
        machine.kill()
