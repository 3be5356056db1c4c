"""What a budget says to calls while a sidecar cannot ask."""

from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '10s'")
    op.execute("ALTER TABLE budgets ADD COLUMN on_unreachable TEXT DEFAULT 'SIDECAR' NOT NULL")


def downgrade() -> None:
    op.execute("ALTER TABLE budgets DROP COLUMN on_unreachable")
