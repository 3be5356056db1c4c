"""`python -m bursar_server`: the same as the command `bursar`."""

from bursar_server.cli import main

if __name__ == "__main__":
    main()
