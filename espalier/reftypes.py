"""References and names as the types of a spec's fields: refused as the field they stand in."""

from typing import Annotated

from pydantic import AfterValidator, Field

from espalier.errors import InvalidInput
from espalier.refs import check_name, check_project, parse_artifact, parse_ref


def check_ref(text: str) -> str:
    """Return a reference as it was written; raise ValueError when it is none."""
    try:
        parse_ref(text, project="x")
    except InvalidInput as error:
        raise ValueError(error.detail) from error
    return text


def _is_output_ref(text: str) -> str:
    try:
        ref = parse_artifact(text, project="x")
    except InvalidInput as error:
        raise ValueError(error.detail) from error
    if ref.selector:
        raise ValueError("an output is named project/name, without @; it gets the next version")
    return text


def _is_name(text: str) -> str:
    try:
        return check_name(text)
    except InvalidInput as error:
        raise ValueError(error.detail) from error


def _is_project(text: str) -> str:
    try:
        return check_project(text)
    except InvalidInput as error:
        raise ValueError(error.detail) from error


RefText = Annotated[str, Field(max_length=300), AfterValidator(check_ref)]
OutputRef = Annotated[str, Field(max_length=200), AfterValidator(_is_output_ref)]
NameText = Annotated[str, AfterValidator(_is_name)]
ProjectText = Annotated[str, AfterValidator(_is_project)]
