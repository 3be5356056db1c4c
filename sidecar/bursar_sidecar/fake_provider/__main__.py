"""`python -m bursar_sidecar.fake_provider`."""

from bursar_sidecar.fake_provider.cli import main

if __name__ == "__main__":
    main()
