"""Pauses, the ladder, presence

Revision ID: 0002
Revises: 0001
"""

from alembic import op
import sqlalchemy as sa


revision = '0002'
down_revision = '0001'
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table('presence',
    sa.Column('name', sa.String(length=32), nullable=False),
    sa.Column('holder', sa.String(length=64), nullable=False),
    sa.Column('since', sa.DateTime(timezone=True), nullable=False),
    sa.Column('seen_at', sa.DateTime(timezone=True), nullable=False),
    sa.Column('expires_at', sa.DateTime(timezone=True), nullable=False),
    sa.PrimaryKeyConstraint('name', name=op.f('pk_presence'))
    )
    with op.batch_alter_table('artifacts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('revision', sa.Integer(), nullable=False, server_default='1'))
        batch_op.add_column(sa.Column('head', sa.Integer(), nullable=False, server_default='0'))

    with op.batch_alter_table('blobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('damaged_at', sa.DateTime(timezone=True), nullable=True))

    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.add_column(sa.Column('preempt_requested_at', sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column('answer', sa.JSON(), nullable=True))

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.add_column(sa.Column('pause_requested_at', sa.DateTime(timezone=True), nullable=True))
        batch_op.add_column(sa.Column('overrides', sa.JSON(), nullable=False, server_default='{}'))
        batch_op.add_column(sa.Column('rungs', sa.JSON(), nullable=False, server_default='[]'))
        batch_op.add_column(sa.Column('min_memory_bytes', sa.BigInteger(), nullable=True))

    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.add_column(sa.Column('preemptible', sa.Boolean(), nullable=False, server_default=sa.false()))

    with op.batch_alter_table('workers', schema=None) as batch_op:
        batch_op.add_column(sa.Column('installation', sa.String(length=64), nullable=True))



def downgrade() -> None:
    with op.batch_alter_table('workers', schema=None) as batch_op:
        batch_op.drop_column('installation')

    with op.batch_alter_table('projects', schema=None) as batch_op:
        batch_op.drop_column('preemptible')

    with op.batch_alter_table('jobs', schema=None) as batch_op:
        batch_op.drop_column('min_memory_bytes')
        batch_op.drop_column('rungs')
        batch_op.drop_column('overrides')
        batch_op.drop_column('pause_requested_at')

    with op.batch_alter_table('attempts', schema=None) as batch_op:
        batch_op.drop_column('answer')
        batch_op.drop_column('preempt_requested_at')

    with op.batch_alter_table('blobs', schema=None) as batch_op:
        batch_op.drop_column('damaged_at')

    with op.batch_alter_table('artifacts', schema=None) as batch_op:
        batch_op.drop_column('head')
        batch_op.drop_column('revision')

    op.drop_table('presence')
