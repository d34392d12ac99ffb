"""``/agent/v1``: what workers speak. A worker's token is bound to it; it sees its own attempts.

Every view fetches, calls, answers. The messages are espalier.messages.
"""

from flask import Blueprint, Flask, g
from sqlalchemy.orm import Session

from espalier.messages import (
    Assignment,
    CheckpointPublished,
    Claim,
    Finish,
    Finished,
    Heartbeat,
    Hello,
    Orders,
    Report,
    Welcome,
)
from scheduler import access
from scheduler.lifecycle import assignments, ingest
from scheduler.models import Attempt, Worker
from scheduler.placing import fleet
from scheduler.queries import Document
from scheduler.queries.blobs import size_for_worker
from web import auth
from web.api.asked import JoinRequest
from web.api.models import Joined
from web.routes import Routes, replace_nul
from web.services import services
from web.transfer import add_transfer

PREFIX = "/agent/v1"


def register(app: Flask) -> list[Blueprint]:
    """Add the workers' API to the app; return its blueprints."""
    joining = Blueprint("join", __name__, url_prefix=PREFIX)
    _add_join(Routes(joining))
    blueprint = Blueprint("agent", __name__, url_prefix=PREFIX)
    blueprint.before_request(auth.require_worker)
    routes = Routes(blueprint, clean=replace_nul)
    _add_worker(routes)
    _add_attempts(routes)
    add_transfer(routes, owner=lambda: f"worker:{g.worker_id}", readable=_readable)
    app.register_blueprint(joining)
    app.register_blueprint(blueprint)
    return [joining, blueprint]


def _readable(session: Session, sha256: str) -> int | None:
    return size_for_worker(session, g.worker_id, sha256)


def _worker(session: Session) -> Worker:
    return session.get_one(Worker, g.worker_id)


def _add_join(routes: Routes) -> None:
    @routes.route("POST", "/join", status=201, answer=Joined, public=True)
    def join(body: JoinRequest) -> Document:
        """Make this machine a worker, with a one-use join token."""
        with auth.counting_refusals(), services().committing() as session:
            access.redeem(session, auth.bearer(), "join")
            worker, token = fleet.join(session, body.name)
            access.audit(session, access.worker_actor(worker), "worker.join", worker.name)
            return {"worker_id": worker.id, "name": worker.name, "token": token}


def _add_worker(routes: Routes) -> None:
    @routes.route("POST", "/hello", answer=Welcome)
    def hello(body: Hello) -> Welcome:
        """A worker process has started."""
        with services().committing() as session:
            return fleet.hello(session, _worker(session), body, services().settings)

    @routes.route("POST", "/heartbeat", answer=Orders)
    def heartbeat(body: Heartbeat) -> Orders:
        """A worker is alive; it hears its orders."""
        with services().database.transaction() as session:
            return fleet.heartbeat(session, _worker(session), body, services().settings)


def _add_attempts(routes: Routes) -> None:
    @routes.route("POST", "/attempts/<attempt_id>/claim", answer=Assignment)
    def claim(attempt_id: str, body: Claim) -> Assignment:
        """Start the attempt; 409 when it is not placed here (any more)."""
        with services().database.transaction() as session:
            return assignments.claim(session, _worker(session), attempt_id, body)

    @routes.route("POST", "/attempts/<attempt_id>/report", answer=Orders)
    def report(attempt_id: str, body: Report) -> Orders:
        """Take in a batch and renew the lease; 409 ends the child."""
        with services().database.transaction() as session:
            attempt = session.get(Attempt, attempt_id)
            watched = attempt is not None and services().watched.watched(attempt.job_id)
            return ingest.report(session, _worker(session), attempt_id, body, watched=watched)

    @routes.route("POST", "/attempts/<attempt_id>/checkpoints", status=204)
    def checkpoint(attempt_id: str, body: CheckpointPublished) -> None:
        """Record a checkpoint whose blobs are uploaded."""
        with services().database.transaction() as session:
            ingest.checkpoint(session, _worker(session), attempt_id, body)

    @routes.route("POST", "/attempts/<attempt_id>/finish", answer=Finished)
    def finish(attempt_id: str, body: Finish) -> Finished:
        """Publish the outputs and end the attempt; 409 when the lease is not its own."""
        store = services()
        assignments.prepare(store.database, store.blobs, g.worker_id, attempt_id, body)
        with store.committing() as session:
            return assignments.finish(session, store.blobs, _worker(session), attempt_id, body)
