"""A worker process for the tests of `playserve_client.workers`: doubles numbers, and dies or fails when told to."""

import json
import os
from multiprocessing.connection import Connection

from playserve_client.workers import Teller, leave_interrupts_to_the_parent, send


def work(connection: Connection, config: str) -> None:
    leave_interrupts_to_the_parent()
    factor = json.loads(config)["factor"]
    try:
        while True:
            number = json.loads(connection.recv_bytes())["number"]
            if number == 13:
                os._exit(1)
            if number == 7:
                send(connection, {"error": "seven"})
                return
            tell = Teller(connection, every=4)
            for _ in range(number):
                tell(1)
            tell.flush()
            send(connection, {"answer": number * factor})
    except (EOFError, ConnectionError):
        return
