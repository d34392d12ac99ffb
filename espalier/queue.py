"""The Celery app, and the one message it carries.

A message is a losable, repeatable wake-up ticket: the id of an attempt that is already committed
in SQL. Nothing here is relied on for correctness: an attempt that is placed and not claimed is
published again, a second claim is refused, leases decide the rest. So acknowledge early, keep no
results, and let no worker look at another's messages: each has its own queue and its own keys
under ``n:<worker id>:``, which one ACL pattern covers. What default settings cost was measured:
traffic that grows with the square of the workers, and long jobs started twice.
"""

from celery import Celery
from kombu import Queue
from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from espalier.errors import Unavailable
from espalier.ids import new_id
from espalier.settings import settings
from espalier.states import Kind

#: Seconds until a frozen broker counts as away.
SOCKET_TIMEOUT = 10.0


def queue_for(worker_id: str) -> str:
    """Return the name of the queue, and so the Redis key, that this worker alone consumes."""
    return f"n:{worker_id}:jobs"


def task_name(kind: Kind) -> str:
    """Return the name of the Celery task that runs jobs of this kind."""
    return f"espalier.{kind.value}"


def _queue(worker_id: str) -> Queue:
    # Declaring writes a binding set per queue that only default exchanges need.
    return Queue(queue_for(worker_id), no_declare=True)


def make_app(
    broker_url: str, worker_id: str | None = None, *, socket_timeout: float = SOCKET_TIMEOUT
) -> Celery:
    """Return the Celery app: a worker's with its id, a publisher's without.

    Connects to nothing yet. ``ESPALIER_CELERY_EVENTS=1`` sends Celery's task events, for Flower.
    """
    transport = {
        "visibility_timeout": 3600,
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        "socket_keepalive": True,
        "health_check_interval": 25,
        "priority_steps": [0],  # priorities live in SQL; one list per queue
    }
    owner = worker_id or "publisher"
    for key in ("unacked", "unacked_index", "unacked_mutex"):
        transport[f"{key}_key"] = f"n:{owner}:{key}"
    app = Celery("espalier", set_as_current=False)
    app.conf.update(
        broker_url=broker_url,
        broker_transport_options=transport,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        result_backend=None,
        accept_content=["json"],
        task_serializer="json",
        task_acks_late=False,
        task_ignore_result=True,
        task_publish_retry=False,
        task_create_missing_queues=False,
        task_queues=[_queue(worker_id)] if worker_id else [],
        worker_prefetch_multiplier=1,
        worker_disable_prefetch=True,
        worker_enable_remote_control=False,
        worker_send_task_events=settings().celery_events,
        worker_cancel_long_running_tasks_on_connection_loss=False,
        worker_hijack_root_logger=False,
    )
    return app


def publish(app: Celery, worker_id: str, kind: Kind, attempt_id: str) -> None:
    """Wake ``worker_id`` up for ``attempt_id``: one LPUSH, tried once.

    Raises Unavailable when the broker is away or frozen. The ticket may have arrived all the
    same; receivers take any number of them.
    """
    try:
        app.send_task(
            task_name(kind),
            args=[attempt_id],
            task_id=new_id(),
            queue=_queue(worker_id),
            retry=False,
            ignore_result=True,
        )
    except (KombuError, RedisError, OSError) as error:
        raise Unavailable(
            f"The broker did not take the ticket for attempt {attempt_id}: {error}.",
            hint="It is sent again when the claim timeout ends.",
        ) from error
