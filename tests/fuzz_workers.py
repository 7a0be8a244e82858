"""A worker of the fuzzer that crashes at input 0, hangs at 1, and ends well; imports are fast."""

import os
import time


def misbehave(name, first, last, seed, connection):
    for number in range(first, last):
        connection.send(number)
        if number == 0:
            os.abort()
        if number == 1:
            time.sleep(1000)
    connection.send({"megabytes": 7.0})
