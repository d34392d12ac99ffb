"""``/api/v1``: webhooks, for owners and admins."""

from sqlalchemy.orm import Session

from espalier.errors import NotFound
from scheduler import access
from scheduler.catalog import webhooks
from scheduler.models import Project, Webhook
from scheduler.queries import Document, rules
from web.api.asked import DeliveriesQuery, WebhookRequest
from web.api.told import (
    DeliveriesAnswer,
    DeliveryAnswer,
    WebhookAnswer,
    WebhookMade,
    WebhooksAnswer,
)
from web.auth import actor
from web.routes import Routes
from web.services import services

_HOOKS = "/projects/<project>/webhooks"
_HOOK = f"{_HOOKS}/<webhook>"


def add(routes: Routes) -> None:
    """Add the routes of webhooks."""
    _add_webhooks(routes)
    _add_deliveries(routes)


def _project(session: Session, name: str) -> Project:
    return access.project_for(session, actor(), name)


def _add_webhooks(routes: Routes) -> None:
    @routes.route("GET", _HOOKS, answer=WebhooksAnswer)
    def list_webhooks(project: str) -> Document:
        """List the addresses that are told what happens in a project."""
        with services().database.reading() as session:
            found = webhooks.webhooks_of(session, actor(), _project(session, project))
            return {"webhooks": [rules.webhook(hook) for hook in found]}

    @routes.route("POST", _HOOKS, status=201, answer=WebhookMade)
    def add_webhook(project: str, body: WebhookRequest) -> Document:
        """Add an address; the answer holds its secret this one time.

        Owners name addresses that are reachable from anywhere, admins any. Every delivery is
        signed: `X-Espalier-Signature-256` is `sha256=` and the HMAC-SHA256 of the body.
        """
        database = services().database
        made = webhooks.add(database, actor(), project, body.url, body.events)
        with database.reading() as session:
            hook = session.get_one(Webhook, made)
            return {**rules.webhook(hook), "secret": hook.secret}

    @routes.route("DELETE", _HOOK, status=204)
    def remove_webhook(project: str, webhook: str) -> None:
        """Take an address away, with what it was still to be sent."""
        with services().database.transaction() as session:
            webhooks.remove(session, actor(), _project(session, project), webhook)

    @routes.route("POST", f"{_HOOK}/enable", answer=WebhookAnswer)
    def enable_webhook(project: str, webhook: str) -> Document:
        """Send again to an address that was disabled after too many failures."""
        with services().database.transaction() as session:
            found = _project(session, project)
            return rules.webhook(webhooks.enable(session, actor(), found, webhook))


def _add_deliveries(routes: Routes) -> None:
    @routes.route("POST", f"{_HOOK}/ping", status=202, answer=DeliveryAnswer)
    def ping_webhook(project: str, webhook: str) -> Document:
        """Send a `ping`, to see whether the other end works."""
        with services().database.transaction() as session:
            found = _project(session, project)
            return rules.delivery(webhooks.ping(session, actor(), found, webhook))

    @routes.route("GET", f"{_HOOK}/deliveries", answer=DeliveriesAnswer)
    def list_deliveries(project: str, webhook: str, query: DeliveriesQuery) -> Document:
        """List what was sent and is to be, newest first."""
        with services().database.reading() as session:
            hook = webhooks.find(session, actor(), _project(session, project), webhook)
            rows = webhooks.deliveries(session, hook, query.limit)
            return {"deliveries": [rules.delivery(row) for row in rows]}

    @routes.route(
        "POST", f"{_HOOK}/deliveries/<delivery>/redeliver", status=202, answer=DeliveryAnswer
    )
    def redeliver(project: str, webhook: str, delivery: str) -> Document:
        """Send a delivery once more; its number and what it says stay."""
        if not delivery.isdecimal() or len(delivery) > 18:
            raise NotFound(f"Webhook {webhook} has no delivery {delivery!r}.")
        with services().database.transaction() as session:
            found = _project(session, project)
            row = webhooks.redeliver(session, actor(), found, webhook, int(delivery))
            return rules.delivery(row)
