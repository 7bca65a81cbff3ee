"""Folders where the driver keeps what it compiles: each tenant's only its own workers can open."""

from __future__ import annotations

import logging
import os
import stat
from pathlib import Path

from gpupool.hostd.core.sandbox import Account
from gpupool.hostd.log import fields

log = logging.getLogger("gpupool.hostd")

_told: set[str] = set()  # once a folder: a session works without


def make_cache_folder(folder: str, user: Account | None) -> str:
    """Makes the folder if it is missing, for that user (None: hostd's own).

    Returns it, or nothing, and logs why, when it cannot be used: then the driver keeps nothing.
    """
    if not folder:
        return ""
    path = Path(folder)
    uid, gid = (user.uid, user.gid) if user else (os.geteuid(), os.getegid())
    try:
        # Others may pass through the parent, not list it: who has a folder there is nobody's news.
        path.parent.mkdir(mode=0o711 if user else 0o700, parents=True, exist_ok=True)
        try:
            path.mkdir(mode=0o700)
            if user:
                os.chown(path, uid, gid)
        except FileExistsError:
            facts = path.lstat()
            if not stat.S_ISDIR(facts.st_mode) or facts.st_uid != uid:
                raise PermissionError(0, f"is no folder of user {uid}; move it away") from None
    except OSError as error:
        if folder not in _told:
            _told.add(folder)
            log.warning(
                "compiled code is not kept",
                extra=fields({"folder": folder, "error": error.strerror}),
            )
        return ""
    return folder
