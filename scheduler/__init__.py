"""Sole owner of tables and states: submit, place, dispatch, claim, ingest, finish, registry."""
