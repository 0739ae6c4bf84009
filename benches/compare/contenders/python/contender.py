"""python-netfilterqueue (its package is called NetfilterQueue), which wraps libnetfilter_queue.

default: bind() with nothing but the queue's length. Its copy range of 65,535 is cut to 4,016 bytes
by the library, whose buffer has 4,096; its receive buffer is 2.4 MB unless --buffer says otherwise.
best: the same with a receive buffer of 8 MiB. It has no flags (no GSO), no batches, and the copy range cannot grow; what its
documentation advises for speed is several queues. The callbacks here are as short as its
interface allows: the verdict and what the harness needs to know.

With several queues each has a NetfilterQueue and a thread; the interpreter's lock lets one of them
run Python code at a time.
"""

import itertools
import os
import select
import struct
import sys
import threading
import time

try:
    from netfilterqueue import NetfilterQueue
except ImportError as error:
    sys.exit(f"NetfilterQueue cannot be loaded: {error}")

QUEUE_LEN = 131072
RECEIVE_BUFFER = 8 << 20
# A packet of this length was cut off, or could have been: sent back, the rest would be gone.
CUT_OFF = 4016


class Enough(Exception):
    """Leaves run() after the last packet that is wanted."""


def say(line):
    print(line, flush=True)


def unsupported(reason):
    say(f"unsupported {reason}")
    os._exit(0)


def edited(packet):
    if packet.get_payload_len() >= CUT_OFF:
        unsupported(f"packets of {CUT_OFF} bytes and more are cut off, so edits would damage them")
    return bytearray(packet.get_payload())


def drop(packet):
    packet.drop()


def accept(packet):
    packet.accept()


def flip(packet):
    payload = edited(packet)
    payload[-1] ^= 0xFF
    packet.set_payload(bytes(payload))
    packet.accept()


def recompute(packet):
    payload = edited(packet)
    if payload[0] >> 4 == 4:
        start, protocol, addresses = (payload[0] & 15) * 4, payload[9], payload[12:20]
    else:
        start, protocol, addresses = 40, payload[6], payload[8:40]
    if protocol == 6:
        data, checksum = start + (payload[start + 12] >> 4) * 4, start + 16
    elif protocol == 17:
        data, checksum = start + 8, start + 6
    else:
        packet.accept()
        return
    if data < len(payload):
        payload[data] ^= 1
    payload[checksum : checksum + 2] = b"\0\0"
    segment = payload[start:]
    pseudo = addresses + struct.pack("!II", len(segment), protocol)
    if len(segment) % 2:
        segment.append(0)
    # The remainder of a number by 65,535 is the ones' complement sum of its 16-bit digits, and
    # Python divides large numbers in C. The complement of a remainder is never zero, which UDP
    # must not have.
    value = 0xFFFF - int.from_bytes(pseudo + segment, "big") % 0xFFFF
    payload[checksum : checksum + 2] = value.to_bytes(2, "big")
    packet.set_payload(bytes(payload))
    packet.accept()


TASKS = {"drop": drop, "accept": accept, "flip": flip, "recompute": recompute}


def bind(number, callback, buffer):
    queue = NetfilterQueue()
    options = {"sock_len": buffer} if buffer else {}
    queue.bind(number, callback, max_len=QUEUE_LEN, **options)
    return queue


def judge_alone(options):
    """One queue, in the main thread."""
    judge = TASKS.get(options["task"])
    held = []
    counter, wanted = None, None

    def callback(packet):
        judge(packet)
        if next(counter) == wanted:
            raise Enough

    def hold(packet):
        packet.retain()
        held.append(packet)
        if next(counter) == wanted:
            raise Enough

    queue = bind(options["queue"], callback if judge else hold, options["buffer"])

    def run(packets):
        nonlocal counter, wanted
        counter, wanted = itertools.count(1), packets
        try:
            queue.run()
        except Enough:
            pass
        for packet in held:
            packet.accept()
        held.clear()
        return time.perf_counter_ns()

    return run


def judge_in_threads(options):
    """Several queues, each in its own thread. Those with nothing to do wait in `running`."""
    judge = TASKS.get(options["task"])
    if not judge:
        unsupported("the contender holds packets of one queue only")
    counter, wanted, end = itertools.count(1), 0, 0  # next() lets no other thread come between
    running, finished = threading.Event(), threading.Event()

    def callback(packet):
        nonlocal end
        if not running.is_set():
            running.wait()
        judge(packet)
        if next(counter) == wanted:
            end = time.perf_counter_ns()
            running.clear()
            finished.set()

    queues = [bind(options["queue"] + i, callback, options["buffer"]) for i in range(options["queues"])]
    for queue in queues:
        threading.Thread(target=queue.run, daemon=True).start()

    def run(packets):
        nonlocal wanted
        wanted += packets
        finished.clear()
        running.set()
        finished.wait()
        return end

    return run


def until_stdin_closes():
    """Ends the process then, whatever the other threads are at. Reads nothing: that is for `main`."""
    closed = select.poll()
    closed.register(sys.stdin, 0)  # what is always told of: that the other end has hung up
    closed.poll()
    os._exit(0)


def main():
    options = {"queue": 0, "queues": 1, "task": "accept", "settings": "default", "buffer": 0}
    for name, value in zip(sys.argv[1::2], sys.argv[2::2]):
        name = name.removeprefix("--")
        options[name] = int(value) if isinstance(options[name], int) else value
    if options["task"] not in (*TASKS, "retain"):
        unsupported("the library cannot do this task")
    if options["settings"] == "best":
        options["buffer"] = options["buffer"] or RECEIVE_BUFFER
    threading.Thread(target=until_stdin_closes, daemon=True).start()
    run = judge_in_threads(options) if options["queues"] > 1 else judge_alone(options)
    say("ready")
    while line := sys.stdin.readline():
        start = time.perf_counter_ns()
        command, _, number = line.strip().partition(" ")
        if command == "judge":
            say(f"done {run(int(number)) - start}")
        elif command == "serve":
            run(1 << 62)
        elif command == "rss":
            with open("/proc/self/status") as status:
                say(next(f"rss {entry.split()[1]}" for entry in status if entry.startswith("VmRSS:")))
    os._exit(0)


main()
