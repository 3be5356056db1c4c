"""As much of `curl` as the README needs, for machines without it: -s, -i, -D -, -H, -d, -o, -w and a URL."""

from __future__ import annotations

import getopt
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any


def main(arguments: list[str]) -> None:
    """Make one request and write what comes as curl does."""
    options, urls = getopt.gnu_getopt(arguments, "siD:H:d:o:w:")
    given = dict(options)
    headers = dict(value.split(": ", 1) for name, value in options if name == "-H")
    data = given["-d"].encode() if "-d" in given else None
    request = urllib.request.Request(urls[0], data=data, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            show(answer.status, answer.reason, answer.headers, answer.read(), given)
    except urllib.error.HTTPError as error:
        with error:
            show(error.code, error.reason, error.headers, error.read(), given)


def show(status: int, reason: str, headers: Any, body: bytes, given: dict[str, str]) -> None:
    """Write the head where it was asked for, the body to stdout or a file, and the format last."""
    if "-i" in given or given.get("-D") == "-":
        head = f"HTTP/1.1 {status} {reason}\r\n" + "".join(
            f"{name}: {text}\r\n" for name, text in headers.items()
        )
        sys.stdout.write(f"{head}\r\n")
        sys.stdout.flush()
    if "-o" in given:
        Path(given["-o"]).write_bytes(body)
    else:
        sys.stdout.buffer.write(body)
    sys.stdout.flush()
    sys.stdout.write(given.get("-w", "").replace("%{http_code}", str(status)).replace("\\n", "\n"))


if __name__ == "__main__":
    main(sys.argv[1:])
