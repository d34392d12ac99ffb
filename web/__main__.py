"""``python -m web``: see web.serve."""

from web.serve import main

main()
