"""Settings: defaults < ``espalier.toml`` < environment (``ESPALIER_…``).

The file is ``$ESPALIER_CONFIG``, else ``espalier.toml`` in the working directory.
"""

import os
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote

from pydantic import Field, SecretStr
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    TomlConfigSettingsSource,
)


class Settings(BaseSettings):
    """Everything that differs between an embedded stack, a team's, and a test's."""

    model_config = SettingsConfigDict(env_prefix="ESPALIER_", extra="ignore", frozen=True)

    data_dir: Path = Field(Path("~/.espalier"), description="embedded: everything lives here")
    database_url: str | None = Field(None, description="default: SQLite in the data directory")
    broker_url: str | None = Field(None, description="default: the Valkey that `up` starts")
    store_url: str | None = Field(None, description="file:///… or s3://bucket/prefix")
    s3_endpoint: str | None = None
    s3_region: str = "us-east-1"
    s3_access_key: SecretStr | None = Field(None, description="default: boto3's own chain")
    s3_secret_key: SecretStr | None = None
    s3_path_style: bool = Field(True, description="bucket in the path, not in the host's name")
    s3_encryption: str | None = Field(None, description="AES256, aws:kms or aws:kms:KEY-ID")
    s3_presigned: bool = Field(False, description="downloads straight from S3, where it can Range")
    public_url: str | None = Field(None, description="how people and workers reach the web app")
    secret_key: SecretStr | None = Field(None, description="signs sessions; made once if absent")

    url: str = Field("http://127.0.0.1:8000", description="clients: the control plane")
    token: SecretStr | None = Field(None, description="clients: a personal or worker token")
    tensorboard_dir: Path | None = Field(
        None, description="workers: TensorBoard's event files; default: in the data directory"
    )

    lease_seconds: float = Field(180.0, gt=0)
    report_seconds: float = Field(5.0, gt=0)
    watched_report_seconds: float = Field(1.0, gt=0)
    claim_timeout_seconds: float = Field(30.0, gt=0)
    unclaimed_limit: int = Field(3, ge=1, description="placements unclaimed before suspicion")
    lost_limit: int = Field(5, ge=1, description="lost attempts before a job is set aside")
    cancel_grace_seconds: float = Field(4.0, gt=0, description="from order to kill")
    upstream_hub: str | None = Field(None, description="default: https://huggingface.co")
    upstream_token: SecretStr | None = Field(None, description="for gated models; goes only there")
    upstream_allow: tuple[str, ...] = Field(("*",), description="patterns of org/name")
    upstream_deny: tuple[str, ...] = Field((), description="patterns; counts more than allow")
    mirror_bytes: int = Field(200 << 30, gt=0, description="the upstream hub's files kept here")
    mirror_days: int | None = Field(None, ge=1, description="unused files kept at most this long")
    max_upload_bytes: int = Field(1 << 40, gt=0)
    part_bytes: int = Field(64 << 20, ge=5 << 20)
    cache_bytes: int = Field(200 << 30, gt=0, description="worker: blob cache budget")
    bandwidth_bytes: int | None = Field(
        None, gt=0, description="clients, workers: bytes per second up, and as many down"
    )
    share_blobs: str | None = Field(
        None, description="worker: host:port where other workers of the LAN fetch its blobs"
    )
    memory_limit_bytes: int | None = Field(
        None, gt=0, description="worker: what a job may use; default by the machine"
    )
    disk_reserve_bytes: int = Field(1 << 30, ge=0, description="worker: disk left free")
    spool_bytes: int = Field(64 << 20, gt=0, description="worker: unsent log text of an attempt")
    hang_first_seconds: float = Field(1800.0, gt=0, description="worker: for a first step")
    hang_floor_seconds: float = Field(120.0, gt=0, description="worker: for a step, at least")
    warm_engine: bool = Field(True, description="worker: a process made ready before a job comes")
    keep_base_seconds: float = Field(
        600.0, ge=0, description="worker: an eval's base kept for the next eval on it; 0: never"
    )
    keep_base_bytes: int | None = Field(
        None, gt=0, description="worker: memory of a kept base; default half of a job's"
    )
    converter: str | None = Field(
        None, description="worker: command of llama.cpp's convert_hf_to_gguf.py, for exports"
    )
    celery_events: bool = Field(False, description="send Celery's events, for Flower")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        path = Path(os.environ.get("ESPALIER_CONFIG", "espalier.toml"))
        return (init_settings, env_settings, TomlConfigSettingsSource(settings_cls, path))

    @property
    def home(self) -> Path:
        """The data directory, absolute."""
        return self.data_dir.expanduser().resolve()

    @property
    def sql_url(self) -> str:
        """The database, with the driver this project ships (psycopg 3)."""
        url = self.database_url or f"sqlite:///{quote(str(self.home / 'espalier.db'))}"
        for plain in ("postgresql://", "postgres://"):
            if url.startswith(plain):
                return "postgresql+psycopg://" + url.removeprefix(plain)
        return url

    @property
    def blob_url(self) -> str:
        return self.store_url or (self.home / "store").as_uri()


@lru_cache(maxsize=1)
def settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
