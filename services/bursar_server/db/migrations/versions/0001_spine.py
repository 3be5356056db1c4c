"""The first schema.

Frozen: later changes are migrations of their own.
"""

from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

SCHEMA = """
CREATE TABLE access_tokens (
    token_id UUID NOT NULL,
    token_sha256 TEXT NOT NULL,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    tenant_ids UUID[],
    user_tenant_id UUID,
    user_id UUID,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    expire_time TIMESTAMP WITH TIME ZONE,
    revoke_time TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_access_tokens PRIMARY KEY (token_id),
    CONSTRAINT uq_access_tokens_token_sha256 UNIQUE (token_sha256)
);

CREATE TABLE alert_states (
    tenant_id UUID NOT NULL,
    budget_id UUID NOT NULL,
    period_key TEXT NOT NULL,
    threshold_pct SMALLINT NOT NULL,
    soft_limit BOOLEAN NOT NULL,
    spent_nanos BIGINT NOT NULL,
    spent_tokens BIGINT NOT NULL,
    fire_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_alert_states PRIMARY KEY (tenant_id, budget_id, period_key, threshold_pct)
);

CREATE TABLE api_keys (
    tenant_id UUID NOT NULL,
    api_key_id UUID NOT NULL,
    name TEXT NOT NULL,
    key_sha256 TEXT NOT NULL,
    masked_key TEXT NOT NULL,
    user_id UUID,
    service_account BOOLEAN DEFAULT false NOT NULL,
    act_for_users BOOLEAN DEFAULT false NOT NULL,
    trust_user_field BOOLEAN DEFAULT false NOT NULL,
    default_tags JSONB DEFAULT '{}' NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    revoke_time TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_api_keys PRIMARY KEY (tenant_id, api_key_id),
    CONSTRAINT uq_api_keys_key_sha256 UNIQUE (key_sha256)
);

CREATE INDEX ix_api_keys_api_key_id ON api_keys (api_key_id);

CREATE INDEX ix_api_keys_tenant_id_user_id ON api_keys (tenant_id, user_id);

CREATE TABLE audit_events (
    tenant_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    action TEXT NOT NULL,
    actor TEXT NOT NULL,
    user_id UUID,
    resource TEXT NOT NULL,
    details JSONB NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    previous_hash TEXT NOT NULL,
    hash TEXT NOT NULL,
    CONSTRAINT pk_audit_events PRIMARY KEY (tenant_id, sequence)
);

CREATE INDEX ix_audit_events_tenant_id_user_id_sequence ON audit_events (tenant_id, user_id, sequence);

CREATE TABLE audit_heads (
    tenant_id UUID NOT NULL,
    sequence BIGINT NOT NULL,
    hash TEXT NOT NULL,
    CONSTRAINT pk_audit_heads PRIMARY KEY (tenant_id)
)
 WITH (fillfactor = 50);

CREATE TABLE balances (
    tenant_id UUID NOT NULL,
    budget_id UUID NOT NULL,
    period_key TEXT NOT NULL,
    period_start TIMESTAMP WITH TIME ZONE NOT NULL,
    period_end TIMESTAMP WITH TIME ZONE NOT NULL,
    spent_nanos BIGINT DEFAULT 0 NOT NULL,
    held_nanos BIGINT DEFAULT 0 NOT NULL,
    spent_tokens BIGINT DEFAULT 0 NOT NULL,
    held_tokens BIGINT DEFAULT 0 NOT NULL,
    shadow_denials BIGINT DEFAULT 0 NOT NULL,
    alerted_pct INTEGER DEFAULT 0 NOT NULL,
    CONSTRAINT pk_balances PRIMARY KEY (tenant_id, budget_id, period_key)
)
 WITH (fillfactor = 70);

CREATE TABLE budgets (
    tenant_id UUID NOT NULL,
    budget_id UUID NOT NULL,
    name TEXT NOT NULL,
    scope_kind TEXT NOT NULL,
    group_id UUID,
    user_id UUID,
    api_key_id UUID,
    tag_key TEXT,
    tag_value TEXT,
    period TEXT NOT NULL,
    anchor_day SMALLINT NOT NULL,
    timezone TEXT NOT NULL,
    limit_nanos BIGINT,
    limit_tokens BIGINT,
    soft_limit_pct SMALLINT,
    alert_thresholds_pct INTEGER[] NOT NULL,
    enforcement TEXT NOT NULL,
    admission TEXT NOT NULL,
    max_wait_ms INTEGER NOT NULL,
    fit_output BOOLEAN NOT NULL,
    shadow BOOLEAN NOT NULL,
    on_lease_expiry TEXT NOT NULL,
    enabled BOOLEAN NOT NULL,
    managed_by TEXT NOT NULL,
    owners TEXT[] DEFAULT '{}' NOT NULL,
    reason TEXT DEFAULT '' NOT NULL,
    definition_revision INTEGER NOT NULL,
    version BIGINT NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    delete_time TIMESTAMP WITH TIME ZONE,
    CONSTRAINT pk_budgets PRIMARY KEY (tenant_id, budget_id),
    CONSTRAINT ck_budgets_one_limit CHECK ((limit_nanos IS NULL) <> (limit_tokens IS NULL))
);

CREATE INDEX ix_budgets_budget_id ON budgets (budget_id);

CREATE INDEX ix_budgets_tenant_id_shared ON budgets (tenant_id, scope_kind) WHERE user_id IS NULL AND delete_time IS NULL;

CREATE INDEX ix_budgets_tenant_id_user_id ON budgets (tenant_id, user_id) WHERE user_id IS NOT NULL;

CREATE TABLE chargeback_reports (
    tenant_id UUID NOT NULL,
    report_id UUID NOT NULL,
    tenant_name TEXT NOT NULL,
    from_time TIMESTAMP WITH TIME ZONE NOT NULL,
    to_time TIMESTAMP WITH TIME ZONE NOT NULL,
    cutoff_time TIMESTAMP WITH TIME ZONE NOT NULL,
    generated_time TIMESTAMP WITH TIME ZONE NOT NULL,
    generated_by TEXT NOT NULL,
    total_nanos BIGINT NOT NULL,
    requests BIGINT NOT NULL,
    content_sha256 TEXT NOT NULL,
    content BYTEA NOT NULL,
    CONSTRAINT pk_chargeback_reports PRIMARY KEY (tenant_id, report_id)
);

CREATE INDEX ix_chargeback_reports_report_id ON chargeback_reports (report_id);

CREATE TABLE config_versions (
    tenant_id UUID NOT NULL,
    version BIGINT NOT NULL,
    CONSTRAINT pk_config_versions PRIMARY KEY (tenant_id)
);

CREATE TABLE grants (
    tenant_id UUID NOT NULL,
    grant_id UUID NOT NULL,
    user_id UUID NOT NULL,
    amount_nanos BIGINT NOT NULL,
    spent_nanos BIGINT DEFAULT 0 NOT NULL,
    held_nanos BIGINT DEFAULT 0 NOT NULL,
    reason TEXT DEFAULT '' NOT NULL,
    starts_at TIMESTAMP WITH TIME ZONE NOT NULL,
    expires_at TIMESTAMP WITH TIME ZONE NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    created_by TEXT NOT NULL,
    revoke_time TIMESTAMP WITH TIME ZONE,
    revoked_by TEXT,
    CONSTRAINT pk_grants PRIMARY KEY (tenant_id, grant_id)
)
 WITH (fillfactor = 70);

CREATE INDEX ix_grants_grant_id ON grants (grant_id);

CREATE INDEX ix_grants_tenant_id_user_id_expires_at ON grants (tenant_id, user_id, expires_at);

CREATE TABLE group_members (
    tenant_id UUID NOT NULL,
    group_id UUID NOT NULL,
    user_id UUID NOT NULL,
    CONSTRAINT pk_group_members PRIMARY KEY (tenant_id, group_id, user_id)
);

CREATE INDEX ix_group_members_tenant_id_user_id ON group_members (tenant_id, user_id);

CREATE TABLE groups (
    tenant_id UUID NOT NULL,
    group_id UUID NOT NULL,
    name TEXT NOT NULL,
    parent_group_id UUID,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_groups PRIMARY KEY (tenant_id, group_id),
    CONSTRAINT uq_groups_tenant_id_name UNIQUE (tenant_id, name)
);

CREATE INDEX ix_groups_group_id ON groups (group_id);

CREATE TABLE holds (
    tenant_id UUID NOT NULL,
    request_id UUID NOT NULL,
    check_sha256 TEXT NOT NULL,
    check_time TIMESTAMP WITH TIME ZONE NOT NULL,
    lease_expire_time TIMESTAMP WITH TIME ZONE NOT NULL,
    api_key_id UUID,
    user_id UUID,
    masked_key TEXT NOT NULL,
    service_account BOOLEAN NOT NULL,
    group_ids UUID[] NOT NULL,
    tags JSONB NOT NULL,
    session_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    estimate_input_tokens BIGINT NOT NULL,
    estimate_output_tokens BIGINT NOT NULL,
    release_on_expiry BOOLEAN NOT NULL,
    leg_tenant_ids UUID[] NOT NULL,
    leg_budget_ids UUID[] NOT NULL,
    leg_period_keys TEXT[] NOT NULL,
    leg_user_scoped BOOLEAN[] NOT NULL,
    leg_nanos BIGINT[] NOT NULL,
    leg_tokens BIGINT[] NOT NULL,
    grant_ids UUID[] NOT NULL,
    grant_nanos BIGINT[] NOT NULL,
    CONSTRAINT pk_holds PRIMARY KEY (tenant_id, request_id)
)
 WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

CREATE INDEX ix_holds_lease_expire_time ON holds (lease_expire_time);

CREATE INDEX ix_holds_request_id ON holds (request_id);

CREATE TABLE ledger_entries (
    tenant_id UUID NOT NULL,
    op_id UUID NOT NULL,
    revision SMALLINT NOT NULL,
    leg SMALLINT NOT NULL,
    kind TEXT NOT NULL,
    account TEXT NOT NULL,
    account_tenant_id UUID NOT NULL,
    account_id UUID NOT NULL,
    period_key TEXT NOT NULL,
    amount_nanos BIGINT NOT NULL,
    amount_tokens BIGINT NOT NULL,
    usage_time TIMESTAMP WITH TIME ZONE NOT NULL,
    posted_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_ledger_entries PRIMARY KEY (tenant_id, op_id, revision, leg)
)
 PARTITION BY RANGE (op_id);

CREATE TABLE odd_request_ids (
    tenant_id UUID NOT NULL,
    given_id TEXT NOT NULL,
    request_id UUID NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_odd_request_ids PRIMARY KEY (tenant_id, given_id)
);

CREATE TABLE prices (
    tenant_id UUID NOT NULL,
    price_id UUID NOT NULL,
    source TEXT NOT NULL,
    model_pattern TEXT NOT NULL,
    provider TEXT DEFAULT '' NOT NULL,
    service_tier TEXT DEFAULT '' NOT NULL,
    rates JSONB NOT NULL,
    tiers JSONB DEFAULT '[]' NOT NULL,
    max_output_tokens BIGINT,
    effective_time TIMESTAMP WITH TIME ZONE NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    delete_time TIMESTAMP WITH TIME ZONE,
    version BIGINT NOT NULL,
    CONSTRAINT pk_prices PRIMARY KEY (tenant_id, price_id)
);

CREATE INDEX ix_prices_price_id ON prices (price_id);

CREATE TABLE rate_windows (
    tenant_id UUID NOT NULL,
    user_id UUID NOT NULL,
    window_start TIMESTAMP WITH TIME ZONE NOT NULL,
    requests INTEGER NOT NULL,
    CONSTRAINT pk_rate_windows PRIMARY KEY (tenant_id, user_id, window_start)
)
 WITH (fillfactor = 70);

CREATE TABLE rollup_days (
    tenant_id UUID NOT NULL,
    bucket_day DATE NOT NULL,
    user_id UUID NOT NULL,
    api_key_id UUID NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    requests BIGINT DEFAULT 0 NOT NULL,
    estimated_requests BIGINT DEFAULT 0 NOT NULL,
    unpriced_requests BIGINT DEFAULT 0 NOT NULL,
    input_tokens BIGINT DEFAULT 0 NOT NULL,
    output_tokens BIGINT DEFAULT 0 NOT NULL,
    cache_read_tokens BIGINT DEFAULT 0 NOT NULL,
    cache_write_tokens BIGINT DEFAULT 0 NOT NULL,
    reasoning_tokens BIGINT DEFAULT 0 NOT NULL,
    input_cost_nanos BIGINT DEFAULT 0 NOT NULL,
    output_cost_nanos BIGINT DEFAULT 0 NOT NULL,
    other_cost_nanos BIGINT DEFAULT 0 NOT NULL,
    cost_nanos BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_rollup_days PRIMARY KEY (tenant_id, bucket_day, user_id, api_key_id, provider, model)
)
 WITH (fillfactor = 80);

CREATE TABLE rollup_quarters (
    tenant_id UUID NOT NULL,
    bucket_time TIMESTAMP WITH TIME ZONE NOT NULL,
    user_id UUID NOT NULL,
    api_key_id UUID NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    requests BIGINT DEFAULT 0 NOT NULL,
    estimated_requests BIGINT DEFAULT 0 NOT NULL,
    unpriced_requests BIGINT DEFAULT 0 NOT NULL,
    input_tokens BIGINT DEFAULT 0 NOT NULL,
    output_tokens BIGINT DEFAULT 0 NOT NULL,
    cache_read_tokens BIGINT DEFAULT 0 NOT NULL,
    cache_write_tokens BIGINT DEFAULT 0 NOT NULL,
    reasoning_tokens BIGINT DEFAULT 0 NOT NULL,
    input_cost_nanos BIGINT DEFAULT 0 NOT NULL,
    output_cost_nanos BIGINT DEFAULT 0 NOT NULL,
    other_cost_nanos BIGINT DEFAULT 0 NOT NULL,
    cost_nanos BIGINT DEFAULT 0 NOT NULL,
    CONSTRAINT pk_rollup_quarters PRIMARY KEY (tenant_id, bucket_time, user_id, api_key_id, provider, model)
)
 WITH (fillfactor = 80);

CREATE TABLE tenants (
    tenant_id UUID NOT NULL,
    name TEXT NOT NULL,
    status TEXT NOT NULL,
    region TEXT DEFAULT '' NOT NULL,
    metadata JSONB DEFAULT '{}' NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_tenants PRIMARY KEY (tenant_id),
    CONSTRAINT uq_tenants_name UNIQUE (name)
);

CREATE TABLE usage_records (
    tenant_id UUID NOT NULL,
    request_id UUID NOT NULL,
    revision SMALLINT NOT NULL,
    source TEXT NOT NULL,
    body_sha256 TEXT NOT NULL,
    usage_time TIMESTAMP WITH TIME ZONE NOT NULL,
    posted_time TIMESTAMP WITH TIME ZONE NOT NULL,
    start_time TIMESTAMP WITH TIME ZONE,
    end_time TIMESTAMP WITH TIME ZONE,
    api_key_id UUID,
    user_id UUID,
    masked_key TEXT NOT NULL,
    group_ids UUID[] NOT NULL,
    tags JSONB NOT NULL,
    session_id TEXT NOT NULL,
    provider TEXT NOT NULL,
    model TEXT NOT NULL,
    service_tier TEXT NOT NULL,
    outcome TEXT NOT NULL,
    items JSONB NOT NULL,
    price_id UUID,
    input_tokens BIGINT NOT NULL,
    output_tokens BIGINT NOT NULL,
    input_cost_nanos BIGINT NOT NULL,
    output_cost_nanos BIGINT NOT NULL,
    other_cost_nanos BIGINT NOT NULL,
    cost_nanos BIGINT NOT NULL,
    provider_cost_nanos BIGINT,
    overage_nanos BIGINT NOT NULL,
    hold_shortfall_nanos BIGINT NOT NULL,
    estimated BOOLEAN NOT NULL,
    unpriced BOOLEAN NOT NULL,
    lease_expired BOOLEAN NOT NULL,
    unchecked BOOLEAN NOT NULL,
    postings JSONB NOT NULL,
    CONSTRAINT pk_usage_records PRIMARY KEY (tenant_id, request_id, revision)
)
 PARTITION BY RANGE (request_id);

CREATE TABLE users (
    tenant_id UUID NOT NULL,
    user_id UUID NOT NULL,
    email TEXT NOT NULL,
    display_name TEXT DEFAULT '' NOT NULL,
    role TEXT NOT NULL,
    status TEXT NOT NULL,
    service_account BOOLEAN DEFAULT false NOT NULL,
    rate_limit INTEGER NOT NULL,
    create_time TIMESTAMP WITH TIME ZONE NOT NULL,
    update_time TIMESTAMP WITH TIME ZONE NOT NULL,
    CONSTRAINT pk_users PRIMARY KEY (tenant_id, user_id)
);

CREATE INDEX ix_users_email ON users (email);

CREATE INDEX ix_users_user_id ON users (user_id);

CREATE UNIQUE INDEX uq_users_tenant_id_email ON users (tenant_id, email) WHERE status <> 'DELETED';
"""

SEED = """
INSERT INTO tenants (tenant_id, name, status, create_time, update_time) VALUES
    ('00000000-0000-0000-0000-000000000000', 'platform', 'ACTIVE', now(), now()),
    ('00000000-0000-7000-8000-000000000001', 'default', 'ACTIVE', now(), now());
INSERT INTO config_versions (tenant_id, version) SELECT tenant_id, 1 FROM tenants;
INSERT INTO audit_heads (tenant_id, sequence, hash) SELECT tenant_id, 0, repeat('0', 64) FROM tenants;
"""


def upgrade() -> None:
    op.execute("SET LOCAL lock_timeout = '10s'")
    op.execute(SCHEMA)
    op.execute(SEED)


def downgrade() -> None:
    raise NotImplementedError("the first schema is not taken back: drop the database")
