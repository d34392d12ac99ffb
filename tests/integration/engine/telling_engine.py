"""The engine, telling after each job where every generator of random numbers stands."""

import hashlib
import os
import random
import sys

import mlx.core as mx
import numpy as np

from worker.engine import __main__ as engine
from worker.engine.report import Job

execute = engine.execute


def telling(job: Job) -> int:
    status = execute(job)
    name, keys, *rest = np.random.get_state()
    numpy = (name, keys.tolist(), *rest)
    told = (random.getstate(), numpy, mx.random.state[0].tolist())
    digests = [hashlib.sha256(repr(one).encode()).hexdigest()[:16] for one in told]
    sys.stdout.write(f"generators {','.join(digests)} process {os.getpid()}\n")
    return status


engine.execute = telling
status = engine.main()
sys.stdout.flush()
os._exit(status)
