"""A stand-in for AWS as a process of its own: moto, with what moto lacks filled in.

    python tests/support/aws_shim [--port 0]

It binds a port of 127.0.0.1, prints one JSON line {"url": ...} and serves until its standard input is
closed, so it never outlives whoever started it. boto3 is pointed at the URL as endpoint; every service
answers there. Orders are HTTP: POST /_shim/ORDER with a JSON object, see `orders.py`.
"""

import argparse
import json
import sys
import threading
import time

from account import patch_account
from balancing import patch_balancing
from experiments import patch_experiments
from images import patch_images
from launches import patch_launches
from looks import patch_looks
from machines import patch_machines
from market import patch_market
from moto.moto_server.werkzeug_app import MotoRequestHandler
from orders import Application
from pickers import patch_pickers
from state import Shim
from templates import patch_templates
from werkzeug.serving import make_server


class _Handler(MotoRequestHandler):
    protocol_version = "HTTP/1.1"  # boto3 keeps its connections
    disable_nagle_algorithm = True

    shim = None

    def log(self, *_):
        pass

    def date_time_string(self, timestamp=None):
        return super().date_time_string(time.time() + self.shim.settings["clock"])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    shim = _Handler.shim = Shim()
    patch_machines(shim)
    patch_images(shim)
    patch_launches(shim)
    patch_templates()
    patch_balancing(shim)
    patch_market(shim)
    patch_looks(shim)
    patch_account(shim)
    patch_experiments(shim)
    patch_pickers()
    server = make_server(
        "127.0.0.1", options.port, Application(shim), threaded=True, request_handler=_Handler
    )
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    print(json.dumps({"url": f"http://127.0.0.1:{server.port}"}), flush=True)
    sys.stdin.read()


if __name__ == "__main__":
    main()
