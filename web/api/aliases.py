"""``/api/v1``: aliases, where they have been, and what they ask of a version."""

from scheduler.catalog import aliases, gates, registry
from scheduler.queries import Document, rules
from scheduler.queries import artifacts as queries
from web.api.artifacts import find_version
from web.api.asked import AliasRequest, ExpectedRequest, GateRequest, VerdictQuery
from web.api.models import AliasAnswer
from web.api.told import GateAnswer, GatesAnswer, HistoryAnswer, VerdictAnswer
from web.auth import actor
from web.routes import Routes
from web.services import services

_ALIAS = "/artifacts/<project>/<name>/aliases/<alias>"


def add(routes: Routes) -> None:
    """Add the routes of aliases and gates."""
    _add_aliases(routes)
    _add_gates(routes)


def _add_aliases(routes: Routes) -> None:
    @routes.route("PUT", _ALIAS, answer=AliasAnswer)
    def set_alias(project: str, name: str, alias: str, body: AliasRequest) -> Document:
        """Point an alias at a version; 409 when it is not at `expected`, or its gate refuses."""
        with services().database.transaction() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            version = find_version(session, project, name, body.version)
            aliases.set_alias(session, actor(), artifact, alias, version, body.expected)
            return {"alias": alias, "ref": registry.label(version), "commit": version.commit}

    @routes.route("DELETE", _ALIAS, status=204)
    def remove_alias(project: str, name: str, alias: str, query: ExpectedRequest) -> None:
        """Take an alias away; the version it pointed at stays."""
        with services().database.transaction() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            aliases.remove_alias(session, actor(), artifact, alias, query.expected)

    @routes.route("GET", f"{_ALIAS}/history", answer=HistoryAnswer)
    def alias_history(project: str, name: str, alias: str) -> Document:
        """Say where an alias, a branch or a tag has been, who moved it, and why."""
        with services().database.reading() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            return rules.history(session, artifact, alias)

    @routes.route("POST", f"{_ALIAS}/rollback", answer=AliasAnswer)
    def rollback_alias(project: str, name: str, alias: str, body: ExpectedRequest) -> Document:
        """Point an alias at what it pointed at before; 409 when there is nothing before.

        Versions that were deleted are passed over, and a gate is not asked: what it goes back to
        stood there before.
        """
        with services().database.transaction() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            row = aliases.rollback(session, actor(), artifact, alias, body.expected)
            version = row.version
            return {"alias": alias, "ref": registry.label(version), "commit": version.commit}


def _add_gates(routes: Routes) -> None:
    @routes.route("GET", "/artifacts/<project>/<name>/gates", answer=GatesAnswer)
    def list_gates(project: str, name: str) -> Document:
        """List what the artifact's aliases ask of a version."""
        with services().database.reading() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            return {"gates": [rules.gate(gate) for gate in gates.gates_of(session, artifact)]}

    @routes.route("PUT", f"{_ALIAS}/gate", answer=GateAnswer)
    def set_gate(project: str, name: str, alias: str, body: GateRequest) -> Document:
        """Ask of every version that the alias moves to that an eval of it is good enough.

        Owners and admins only. The data's version that the reference means now is the one.
        """
        with services().database.transaction() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            asked = body.model_dump()
            return rules.gate(gates.set_gate(session, actor(), artifact, alias, **asked))

    @routes.route("DELETE", f"{_ALIAS}/gate", status=204)
    def remove_gate(project: str, name: str, alias: str) -> None:
        """Ask nothing of the alias any more. Owners and admins only."""
        with services().database.transaction() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            gates.remove_gate(session, actor(), artifact, alias)

    @routes.route("GET", f"{_ALIAS}/verdict", answer=VerdictAnswer)
    def gate_verdict(project: str, name: str, alias: str, query: VerdictQuery) -> Document:
        """Say whether the alias may move to a version, and why or why not."""
        with services().database.reading() as session:
            artifact = queries.find_artifact(session, actor(), project, name)
            version = find_version(session, project, name, query.version)
            return rules.verdict(session, artifact, alias, version)
