"""The controller: which vGPU is on which GPU of which node, for whom, and why not.

`core` decides, `store` keeps (SQLite or PostgreSQL), `api` answers over HTTP; `main` wires them.
"""
