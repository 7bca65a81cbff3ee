"""The vGPUs in the admin API (`admin` has the form of requests and answers).

A vGPU in an answer:

    {"id": 3, "name": "trainer", "mode": "reserved" or "on-demand",
     "compute_percent": 25, "memory_mib": 4096,            0: no share of its own; not limited
     "policy": "elastic" or "hard", "priority": 5,         0 (lowest) to 9
     "users": [1000],                                      uids; empty: whoever may connect
     "gpu": "GPU-...",                                     where it is now; "" on demand, not in use
     "sessions": [12, 13],
     "used_mib": 512, "overhead_mib": 480}                 programs' memory; contexts' besides

Anonymous vGPUs, which each belong to one session, have the name "" and numbers from 2**32 on.

Methods, with defaults after the equals sign; what a VGPU argument takes is a name or an id:

    vgpu_create {"name": str, "mode"="on-demand", "compute_percent"=0, "memory_mib"=0,
                 "policy"="elastic", "priority"=5, "users"=[], "gpu"=""}       -> {"vgpu": {...}}
        `gpu`, a UUID, only with mode reserved: there and nowhere else.
    vgpu_list {}                     -> {"vgpus": [{...}], "gpus": [{"gpu": "GPU-...",
                                          "left_percent": 75, "left_mib": 60000, "sessions": 2}],
                                         "waiting": [{"vgpu": "", "compute_percent": 50,
                                          "memory_mib": 0, "program": "python3", "pid": 41,
                                          "waited_s": 3, "position": 1}]}
    vgpu_show {"vgpu": VGPU}                                                   -> {"vgpu": {...}}
    vgpu_resize {"vgpu": VGPU, "compute_percent"=, "memory_mib"=, "policy"=, "priority"=}
        What is not named stays; nothing restarts.                             -> {"vgpu": {...}}
    vgpu_delete {"vgpu": VGPU, "force"=false}                                  -> {"ended": [12]}
        Refused while sessions use it; with force those sessions are ended. Only named ones.

What cannot be done is {"ok": false, "error": text}, where the text says what was asked, what is
left and what to do.
"""

from __future__ import annotations
