"""The store is a hub: branches, gates, webhooks, what lies where

Revision ID: 0003
Revises: 0002
"""

from alembic import op
import sqlalchemy as sa


revision = '0003'
down_revision = '0002'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('webhooks',
    sa.Column('id', sa.String(length=16), nullable=False),
    sa.Column('project_id', sa.String(length=16), nullable=False),
    sa.Column('url', sa.String(length=2000), nullable=False),
    sa.Column('secret', sa.String(length=128), nullable=False),
    sa.Column('events', sa.String(length=200), nullable=False),
    sa.Column('created_by', sa.String(length=16), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('disabled_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['created_by'], ['users.id'], name=op.f('fk_webhooks_created_by_users')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_webhooks_project_id_projects')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_webhooks'))
    )
    with op.batch_alter_table('webhooks', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_webhooks_project_id'), ['project_id'], unique=False)

    op.create_table('model_configs',
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('facts', sa.JSON(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('sha256', name=op.f('pk_model_configs'))
    )
    op.create_table('worker_blobs',
    sa.Column('worker_id', sa.String(length=16), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('size', sa.BigInteger(), nullable=False),
    sa.ForeignKeyConstraint(['worker_id'], ['workers.id'], name=op.f('fk_worker_blobs_worker_id_workers')),
    sa.PrimaryKeyConstraint('worker_id', 'sha256', name=op.f('pk_worker_blobs'))
    )
    with op.batch_alter_table('worker_blobs', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_worker_blobs_sha256'), ['sha256'], unique=False)

    op.create_table('xet_xorbs',
    sa.Column('project_id', sa.String(length=16), nullable=False),
    sa.Column('hash', sa.String(length=64), nullable=False),
    sa.Column('sha256', sa.String(length=64), nullable=False),
    sa.Column('size', sa.BigInteger(), nullable=False),
    sa.Column('index', sa.LargeBinary(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('touched_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['sha256'], ['blobs.sha256'], name=op.f('fk_xet_xorbs_sha256_blobs')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_xet_xorbs_project_id_projects')),
    sa.PrimaryKeyConstraint('project_id', 'hash', name=op.f('pk_xet_xorbs'))
    )
    with op.batch_alter_table('xet_xorbs', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_xet_xorbs_sha256'), ['sha256'], unique=False)

    op.create_table('deliveries',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('webhook_id', sa.String(length=16), nullable=False),
    sa.Column('event', sa.String(length=48), nullable=False),
    sa.Column('payload', sa.JSON(), nullable=False),
    sa.Column('state', sa.String(length=12), nullable=False),
    sa.Column('tries', sa.Integer(), nullable=False),
    sa.Column('status', sa.Integer(), nullable=True),
    sa.Column('error', sa.Text(), nullable=True),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('due_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('sent_at', sa.DateTime(timezone=True), nullable=True),
    sa.ForeignKeyConstraint(['webhook_id'], ['webhooks.id'], name=op.f('fk_deliveries_webhook_id_webhooks')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_deliveries'))
    )
    with op.batch_alter_table('deliveries', schema=None) as batch_op:
        batch_op.create_index('ix_deliveries_due', ['state', 'due_at'], unique=False)
        batch_op.create_index(batch_op.f('ix_deliveries_webhook_id'), ['webhook_id'], unique=False)

    op.create_table('former_names',
    sa.Column('project_id', sa.String(length=16), nullable=False),
    sa.Column('name', sa.String(length=96), nullable=False),
    sa.Column('artifact_id', sa.String(length=16), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['artifact_id'], ['artifacts.id'], name=op.f('fk_former_names_artifact_id_artifacts')),
    sa.ForeignKeyConstraint(['project_id'], ['projects.id'], name=op.f('fk_former_names_project_id_projects')),
    sa.PrimaryKeyConstraint('project_id', 'name', name=op.f('pk_former_names'))
    )
    with op.batch_alter_table('former_names', schema=None) as batch_op:
        batch_op.create_index(batch_op.f('ix_former_names_artifact_id'), ['artifact_id'], unique=False)

    op.create_table('gates',
    sa.Column('artifact_id', sa.String(length=16), nullable=False),
    sa.Column('alias', sa.String(length=96), nullable=False),
    sa.Column('data', sa.String(length=320), nullable=False),
    sa.Column('metric', sa.String(length=64), nullable=False),
    sa.Column('min_delta', sa.Float(), nullable=False),
    sa.Column('proofs', sa.Boolean(), nullable=False),
    sa.Column('number', sa.Integer(), nullable=False),
    sa.Column('updated_by', sa.String(length=16), nullable=True),
    sa.Column('updated_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['artifact_id'], ['artifacts.id'], name=op.f('fk_gates_artifact_id_artifacts')),
    sa.ForeignKeyConstraint(['updated_by'], ['users.id'], name=op.f('fk_gates_updated_by_users')),
    sa.PrimaryKeyConstraint('artifact_id', 'alias', name=op.f('pk_gates'))
    )
    op.create_table('alias_moves',
    sa.Column('id', sa.BigInteger().with_variant(sa.Integer(), 'sqlite'), autoincrement=True, nullable=False),
    sa.Column('artifact_id', sa.String(length=16), nullable=False),
    sa.Column('alias', sa.String(length=96), nullable=False),
    sa.Column('kind', sa.String(length=8), nullable=False),
    sa.Column('from_id', sa.String(length=16), nullable=True),
    sa.Column('to_id', sa.String(length=16), nullable=True),
    sa.Column('actor', sa.String(length=120), nullable=False),
    sa.Column('why', sa.String(length=16), nullable=False),
    sa.Column('detail', sa.Text(), nullable=False),
    sa.Column('created_at', sa.DateTime(timezone=True), nullable=False),
    sa.ForeignKeyConstraint(['artifact_id'], ['artifacts.id'], name=op.f('fk_alias_moves_artifact_id_artifacts')),
    sa.ForeignKeyConstraint(['from_id'], ['versions.id'], name=op.f('fk_alias_moves_from_id_versions')),
    sa.ForeignKeyConstraint(['to_id'], ['versions.id'], name=op.f('fk_alias_moves_to_id_versions')),
    sa.PrimaryKeyConstraint('id', name=op.f('pk_alias_moves'))
    )
    with op.batch_alter_table('alias_moves', schema=None) as batch_op:
        batch_op.create_index('ix_alias_moves_name', ['artifact_id', 'alias', 'id'], unique=False)

    with op.batch_alter_table('aliases', schema=None) as batch_op:
        batch_op.add_column(sa.Column('kind', sa.String(length=8), nullable=False, server_default='alias'))

    with op.batch_alter_table('artifacts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('deleted_at', sa.DateTime(timezone=True), nullable=True))
    op.execute('UPDATE artifacts SET head = 0')  # heads have a new format: all are due

    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('machine', sa.JSON(), nullable=True))

    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.add_column(sa.Column('quota_bytes', sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column('ttl_days', sa.Integer(), nullable=True))

    with op.batch_alter_table('versions', schema=None) as batch_op:
        batch_op.add_column(sa.Column('branch', sa.String(length=96), nullable=False, server_default='main'))
        batch_op.add_column(sa.Column('previous_id', sa.String(length=16), nullable=True))
        batch_op.add_column(sa.Column('message', sa.Text(), nullable=True))
        batch_op.create_foreign_key(batch_op.f('fk_versions_previous_id_versions'), 'versions', ['previous_id'], ['id'])

    with op.batch_alter_table('workers', schema=None) as batch_op:
        batch_op.add_column(sa.Column('shares_url', sa.String(length=200), nullable=True))
        batch_op.add_column(sa.Column('shares_key', sa.String(length=64), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table('workers', schema=None) as batch_op:
        batch_op.drop_column('shares_key')
        batch_op.drop_column('shares_url')

    with op.batch_alter_table('versions', schema=None) as batch_op:
        batch_op.drop_constraint(batch_op.f('fk_versions_previous_id_versions'), type_='foreignkey')
        batch_op.drop_column('message')
        batch_op.drop_column('previous_id')
        batch_op.drop_column('branch')

    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.drop_column('machine')

    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.drop_column('ttl_days')
        batch_op.drop_column('quota_bytes')

    with op.batch_alter_table('artifacts', schema=None) as batch_op:
        batch_op.drop_column('deleted_at')

    with op.batch_alter_table('aliases', schema=None) as batch_op:
        batch_op.drop_column('kind')

    with op.batch_alter_table('alias_moves', schema=None) as batch_op:
        batch_op.drop_index('ix_alias_moves_name')

    op.drop_table('alias_moves')
    op.drop_table('gates')
    with op.batch_alter_table('former_names', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_former_names_artifact_id'))

    op.drop_table('former_names')
    with op.batch_alter_table('deliveries', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_deliveries_webhook_id'))
        batch_op.drop_index('ix_deliveries_due')

    op.drop_table('deliveries')
    with op.batch_alter_table('xet_xorbs', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_xet_xorbs_sha256'))

    op.drop_table('xet_xorbs')
    with op.batch_alter_table('worker_blobs', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_worker_blobs_sha256'))

    op.drop_table('worker_blobs')
    op.drop_table('model_configs')
    with op.batch_alter_table('webhooks', schema=None) as batch_op:
        batch_op.drop_index(batch_op.f('ix_webhooks_project_id'))

    op.drop_table('webhooks')
