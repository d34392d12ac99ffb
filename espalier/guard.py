"""Ends a stack's processes when its supervisor is killed: ``python -m espalier.guard``.

macOS has no way for a child to die with its parent, and programs such as Valkey cannot be taught
to watch a pipe. So one small process reads the supervisor's pipe: lines ``+PID GRACE`` and
``-PID``, in the order in which the processes were started. When the pipe ends without ``bye``,
the supervisor is gone, and the guard ends what it knew of, the last one first.
"""

import signal
import sys


def main() -> None:
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    watched: dict[int, float] = {}
    for line in sys.stdin:
        command = line.strip()
        if command == "bye":
            return
        pid, _, grace = command[1:].partition(" ")
        if command.startswith("+"):
            watched[int(pid)] = float(grace)
        else:
            watched.pop(int(pid), None)

    from espalier.processes import end  # only now: the guard idles for weeks in little memory

    for pid, seconds in reversed(watched.items()):
        end([pid], seconds)


if __name__ == "__main__":
    main()
