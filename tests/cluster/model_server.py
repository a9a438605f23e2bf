"""Serves one file with byte ranges, and writes what was asked for into a log: a line for each answer with the peer and its bytes."""

import os
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PATH, LOG, ADDRESS, PORT = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
SIZE = os.path.getsize(PATH)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.answer(body=False)

    def do_GET(self):
        self.answer(body=True)

    def answer(self, body):
        if self.path != "/" + os.path.basename(PATH):
            self.send_error(404)
            return
        first, last = 0, SIZE - 1
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked:
            first, last = int(asked[1]), min(int(asked[2] or last), last)
        self.send_response(206 if asked else 200)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{SIZE}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        self.send_header("Content-Length", str(last - first + 1))
        self.end_headers()
        if not body:
            return
        with open(PATH, "rb") as file:
            file.seek(first)
            self.wfile.write(file.read(last - first + 1))
        with open(LOG, "a") as log:
            log.write(f"{self.client_address[0]} {last - first + 1}\n")

    def log_message(self, *_):
        pass


ThreadingHTTPServer((ADDRESS, PORT), Handler).serve_forever()
