"""``/api/v1``: who is asking, and the workers."""

from scheduler import access
from scheduler.db import now
from scheduler.models import User
from scheduler.placing import fleet
from scheduler.queries import Document, stamp
from scheduler.queries import workers as queries
from web.api.asked import DrainRequest
from web.api.models import JoinToken, WhoAmI, WorkerAnswer, WorkersAnswer
from web.auth import actor
from web.routes import Routes
from web.services import services


def add(routes: Routes) -> None:
    """Add the routes of workers, and ``/whoami``."""

    @routes.route("GET", "/whoami", answer=WhoAmI)
    def whoami() -> Document:
        """Tell whose token this is."""
        with services().database.reading() as session:
            projects = [project.name for project in access.projects_of(session, actor())]
        return {"user": actor().name, "is_admin": actor().is_admin, "projects": projects}

    @routes.route("GET", "/workers", answer=WorkersAnswer)
    def list_workers() -> Document:
        """List the workers: what each is and does."""
        with services().database.reading() as session:
            return {"workers": queries.list_workers(session, actor(), services().settings)}

    @routes.route("POST", "/workers/join-tokens", status=201, answer=JoinToken)
    def make_join_token() -> Document:
        """Make a token with which one machine joins, once, within 15 minutes. Admins only."""
        access.require_admin(actor())
        with services().database.transaction() as session:
            user = session.get_one(User, actor().user_id)
            token = access.mint(session, "join", user=user, expires_in=access.JOIN_LIFETIME)
            expires_at = now(session) + access.JOIN_LIFETIME
            access.audit(session, actor(), "worker.invite", user.name)
        return {"token": token, "expires_at": stamp(expires_at)}

    @routes.route("POST", "/workers/<worker>/drain", answer=WorkerAnswer)
    def drain_worker(worker: str, body: DrainRequest) -> Document:
        """Let a worker finish its jobs and get no more, or take it back. Admins only."""
        access.require_admin(actor())
        with services().committing() as session:
            found = queries.find_worker(session, worker)
            fleet.set_draining(session, actor(), found, body.draining)
            session.flush()
            workers = queries.list_workers(session, actor(), services().settings)
            return next(item for item in workers if item["id"] == found.id)
