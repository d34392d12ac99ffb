"""Pipelines that the documents hand out are pipelines."""

from pathlib import Path

import pytest

from espalier.specs import PipelineRequest, parse
from espalier.yamlfile import read_yaml

FILES = sorted((Path(__file__).parents[3] / "docs").glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_pipeline_of_the_documents_can_be_submitted(file: Path) -> None:
    request = parse(PipelineRequest, read_yaml(file))
    kinds = [step.spec.kind for step in request.steps]
    assert kinds == ["train", "eval", "fuse", "quantize", "export"]
