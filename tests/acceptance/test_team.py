"""The team's world: the user's own PostgreSQL, Valkey and S3, the same pipeline."""

from pathlib import Path

from tests.acceptance.stacks import pipeline_file, up
from tests.conftest import create_database
from tests.integration.store.servers import moto_s3


def test_the_pipeline_on_postgresql_valkey_and_s3(
    tmp_path: Path, tiny_model: Path, dataset: Path, postgres_url: str, broker_url: str
) -> None:
    database = create_database(postgres_url).replace("postgresql+psycopg://", "postgresql://", 1)
    with moto_s3() as s3:
        settings = {
            "ESPALIER_DATABASE_URL": database,
            "ESPALIER_BROKER_URL": broker_url,
            **s3.environment,
        }
        with up(tmp_path / "data", settings=settings) as stack:
            assert set(stack.pids) == {"web", "scheduler", "worker-1"}, "no broker of its own"
            stack.run("model", "push", str(tiny_model), "team/tiny")
            stack.run("dataset", "push", str(dataset), "team/textsql")
            file = pipeline_file(
                tmp_path / "main.yaml",
                model="team/tiny",
                data="team/textsql",
                iters=40,
                name="team/sql",
            )
            answer = stack.json("pipeline", str(file), "--wait")
            assert {j["state"] for j in answer["jobs"]} == {"succeeded"}
            stack.run("pull", "team/sql-gguf", str(tmp_path / "gguf"))
            assert list((tmp_path / "gguf").glob("*.gguf"))
        assert not (tmp_path / "data" / "espalier.db").exists()
        assert not (tmp_path / "data" / "store").exists()
