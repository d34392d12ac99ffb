"""The Hugging Face Hub's protocol, reading: ``HF_ENDPOINT`` set to this server's address.

At the root, because that is where its clients look. With it ``huggingface_hub``, ``hf``,
``mlx_lm``, transformers, ``datasets`` and ``llama.cpp -hf`` pull the team's models, adapters,
GGUF files and data sets by name, with a personal token (``HF_TOKEN``). Repositories that are not
the team's come from the hub behind this one, and are kept (web.mirror).
"""

from flask import Blueprint, Flask

from espalier.errors import EspalierError
from web import auth
from web.hub import files, relay, repos, xet
from web.hub.errors import answer


def register(app: Flask) -> Blueprint:
    """Add the hub to the app; return its blueprint."""
    blueprint = Blueprint("hub", __name__)
    blueprint.before_request(auth.require_reader)
    blueprint.before_request(relay.elsewhere)
    blueprint.register_error_handler(EspalierError, answer)
    repos.add(blueprint)
    files.add(blueprint)
    xet.add(blueprint)
    app.register_blueprint(blueprint)
    store = xet.make_store()
    app.extensions["csrf"].exempt(store)
    app.register_blueprint(store)
    return blueprint
