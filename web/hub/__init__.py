"""The Hugging Face Hub's protocol: ``HF_ENDPOINT`` set to this server's address.

At the root, because that is where its clients look. With it ``huggingface_hub``, ``hf``,
``mlx_lm``, transformers, ``datasets`` and ``llama.cpp -hf`` pull the team's models, adapters,
GGUF files and data sets by name, and push their own, with a personal token (``HF_TOKEN``).
Repositories that are not the team's come from the hub behind this one, and are kept (web.mirror).
"""

from flask import Blueprint, Flask

from espalier.errors import EspalierError
from web import auth
from web.hub import commits, create, files, lfs, refs, relay, repos, xet
from web.hub.errors import answer


def register(app: Flask) -> Blueprint:
    """Add the hub to the app; return its blueprint."""
    blueprint = Blueprint("hub", __name__)
    blueprint.before_request(auth.require_reader)
    blueprint.before_request(relay.elsewhere)
    blueprint.register_error_handler(EspalierError, answer)
    for part in (repos, files, create, refs, commits, lfs, xet):
        part.add(blueprint)
    app.register_blueprint(blueprint)
    for store in (lfs.make_targets(), xet.make_store()):  # these have signed tokens of their own
        app.extensions["csrf"].exempt(store)
        app.register_blueprint(store)
    return blueprint
