"""A plain file server to compare with: PUT writes a file and has it on the disk, GET sends it.

``python -m benchmarks.plain DIRECTORY PORT``. No names checked, no digests, nothing kept but the
bytes: what is left is what a network and a disk cost.
"""

import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

CHUNK = 1 << 20


class Files(BaseHTTPRequestHandler):
    """Files of one flat directory."""

    protocol_version = "HTTP/1.1"
    root = Path()

    def do_PUT(self) -> None:
        left = int(self.headers["Content-Length"])
        with self._path().open("wb") as file:
            while left and (chunk := self.rfile.read(min(CHUNK, left))):
                file.write(chunk)
                left -= len(chunk)
            file.flush()
            os.fsync(file.fileno())
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        with self._path().open("rb") as file:
            self.send_response(200)
            self.send_header("Content-Length", str(os.fstat(file.fileno()).st_size))
            self.end_headers()
            self.connection.sendfile(file)

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""

    def _path(self) -> Path:
        return self.root / Path(self.path).name


def main() -> None:
    """Serve until killed."""
    Files.root = Path(sys.argv[1])
    with ThreadingHTTPServer(("127.0.0.1", int(sys.argv[2])), Files) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
