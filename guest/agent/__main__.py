"""`python3 -m gpupool.guest.agent`, and what a zipapp of it runs."""

from gpupool.guest.agent.main import main

raise SystemExit(main())
