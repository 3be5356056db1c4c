"""`python -m bursar_sidecar` is `bursar-sidecar`."""

from bursar_sidecar.cli import main

main()
