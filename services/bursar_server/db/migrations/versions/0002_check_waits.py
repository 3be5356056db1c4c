"""Checks that wait for other calls' holds."""

from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '10s'")
    op.execute("""
CREATE TABLE check_waits (
    tenant_id UUID NOT NULL,
    budget_id UUID NOT NULL,
    request_id UUID NOT NULL,
    wait_since TIMESTAMP WITH TIME ZONE NOT NULL,
    expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_check_waits PRIMARY KEY (tenant_id, budget_id, request_id)
)""")


def downgrade() -> None:
    op.execute("DROP TABLE check_waits")
