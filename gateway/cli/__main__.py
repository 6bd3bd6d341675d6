"""`python -m gateway.cli`: the same as `lockgate`."""

from gateway.cli import main

main()
