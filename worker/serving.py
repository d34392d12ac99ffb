"""What a worker and its children agree on beyond the events: how a child waits for a job."""

#: Arguments of ``python -m worker.engine``: make yourself ready before a task comes; take another
#: task after an eval, if its base is still loaded.
WARM, SERVE = "--warm", "--serve"
#: The phase that a child tells when it is warm, when it is asked (by an empty line), and when it
#: may be given another task. Never part of a job.
READY = "ready"
