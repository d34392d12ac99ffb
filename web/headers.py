"""Headers of every answer, and the nonce that lets a page's own scripts run."""

import secrets

from flask import Flask, Response, g, request


def register(app: Flask) -> None:
    app.before_request(_make_nonce)
    app.after_request(_secure)
    app.jinja_env.globals["csp_nonce"] = csp_nonce


def csp_nonce() -> str:
    """Return the request's nonce: ``<script nonce="{{ csp_nonce() }}">``."""
    nonce: str = g.csp_nonce
    return nonce


def _make_nonce() -> None:
    g.csp_nonce = secrets.token_urlsafe(16)


def _secure(response: Response) -> Response:
    nonce = g.get("csp_nonce", "")
    headers = response.headers
    headers.setdefault(
        "Content-Security-Policy",
        "default-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none';"
        f" script-src 'self' 'nonce-{nonce}'; style-src 'self' 'nonce-{nonce}';"
        # Attributes cannot load or run anything; bars and charts set their sizes by them.
        " style-src-attr 'unsafe-inline';"
        " img-src 'self' data:; font-src 'self'; connect-src 'self'; manifest-src 'self'",
    )
    headers["X-Content-Type-Options"] = "nosniff"
    headers["X-Frame-Options"] = "DENY"
    headers["Referrer-Policy"] = "same-origin"
    headers["Cross-Origin-Opener-Policy"] = "same-origin"
    headers["Cross-Origin-Resource-Policy"] = "same-origin"
    if request.is_secure:
        headers["Strict-Transport-Security"] = "max-age=31536000; includeSubDomains"
    if request.endpoint != "static":
        headers.setdefault("Cache-Control", "private, no-cache")
    return response
