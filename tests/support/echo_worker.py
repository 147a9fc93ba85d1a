"""A worker process for the tests of `playserve_client.workers`: doubles numbers, and dies or fails when told to."""

import json
import os
from multiprocessing.connection import Connection

from playserve_client.workers import Teller, send, worker_life


def work(connection: Connection, config: str) -> None:
    factor = json.loads(config)["factor"]
    with worker_life(connection) as jobs:
        for job in jobs:
            number = job["number"]
            if number == 13:
                os._exit(1)
            if number == 7:
                raise ValueError("seven")
            tell = Teller(connection, every=4)
            for _ in range(number):
                tell(1)
            tell.flush()
            send(connection, {"answer": number * factor})
        send(connection, {"closed": True})
