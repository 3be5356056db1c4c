"""Log records as JSON, one on a line, with nothing secret in them."""

import json
import logging
import re
from datetime import UTC, datetime

# What every LogRecord has; all else came in by `extra` and is a field of the line.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}

# API keys and access tokens, wherever they stand; and the password in a database's URL.
_SECRETS = re.compile(r"\b(bur|bat)_[A-Za-z0-9_-]{8,}|(?<=://)([^\s:/@]+):[^\s@/]+(?=@)")


def scrubbed(text: str) -> str:
    """Return a text without API keys, access tokens and passwords in URLs."""
    return _SECRETS.sub(lambda found: f"{found[1]}_…" if found[1] else f"{found[2]}:…", text)


class JsonFormatter(logging.Formatter):
    """Formats a record as `{"time", "level", "message", "logger", …}`; what `extra` holds becomes further fields.

    `severity` repeats the level under the name that Google Cloud Logging reads (F087).
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line, without its end."""
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="microseconds"),
            "level": record.levelname,
            "severity": record.levelname,
            "message": scrubbed(record.getMessage()),
            "logger": record.name,
        }
        for name, value in vars(record).items():
            if name not in _OWN and name not in line:
                line[name] = scrubbed(value) if isinstance(value, str) else value
        if record.exc_info:
            line["traceback"] = scrubbed(self.formatException(record.exc_info))
        return json.dumps(line, ensure_ascii=False, default=str, separators=(",", ":"))
