"""`python -m node`: the same program as the `radnode` command."""

from node.cli import main

raise SystemExit(main())
