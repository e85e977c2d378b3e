CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL,
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);

CREATE TABLE organizations (
	id VARCHAR(64) NOT NULL,
	name VARCHAR(200) NOT NULL,
	name_key VARCHAR(1000) NOT NULL,
	plan_tier VARCHAR(200) NOT NULL,
	pending_plan_tier VARCHAR(200),
	plan_effective_at DATETIME,
	status VARCHAR(16) NOT NULL,
	billing_email VARCHAR(512),
	currency VARCHAR(3),
	created_at DATETIME NOT NULL,
	updated_at DATETIME NOT NULL,
	billing_version BIGINT NOT NULL,
	PRIMARY KEY (id)
);

CREATE INDEX ix_organizations_plan_effective_at ON organizations (plan_effective_at) WHERE pending_plan_tier IS NOT NULL;

CREATE INDEX ix_organizations_plan_tier ON organizations (plan_tier);

CREATE UNIQUE INDEX uq_organizations_name_key ON organizations (name_key) WHERE status <> 'deleted';

CREATE TABLE memberships (
	org_id VARCHAR(64) NOT NULL,
	user_id VARCHAR(255) NOT NULL,
	role VARCHAR(16) NOT NULL,
	joined_at DATETIME NOT NULL,
	PRIMARY KEY (org_id, user_id),
	FOREIGN KEY(org_id) REFERENCES organizations (id)
);

CREATE INDEX ix_memberships_user_id ON memberships (user_id);

CREATE TABLE events (
	seq INTEGER NOT NULL PRIMARY KEY AUTOINCREMENT,
	id VARCHAR(36) NOT NULL,
	type VARCHAR(64) NOT NULL,
	org_id VARCHAR(64) NOT NULL,
	actor VARCHAR(255) NOT NULL,
	source VARCHAR(255) NOT NULL,
	caused_by VARCHAR(600),
	data JSON NOT NULL,
	occurred_at DATETIME NOT NULL,
	published_at DATETIME,
	lease_token VARCHAR(36),
	lease_until DATETIME,
	UNIQUE (id)
);

CREATE INDEX ix_events_org_id ON events (org_id, seq);

CREATE INDEX ix_events_unpublished ON events (seq) WHERE published_at IS NULL;

CREATE TABLE received_events (
	source VARCHAR(255) NOT NULL,
	id VARCHAR(255) NOT NULL,
	type VARCHAR(255),
	subject VARCHAR(255),
	occurred_at DATETIME,
	received_at DATETIME NOT NULL,
	verdict VARCHAR(16) NOT NULL,
	reason TEXT,
	org_id VARCHAR(64),
	data JSON,
	PRIMARY KEY (source, id)
);

CREATE INDEX ix_received_events_subject ON received_events (subject, type, verdict);

CREATE INDEX ix_received_events_verdict ON received_events (verdict, received_at);

CREATE TABLE billing_links (
	org_id VARCHAR(64) NOT NULL,
	provider VARCHAR(16) NOT NULL,
	customer_id VARCHAR(255),
	subscription_id VARCHAR(255),
	account_id VARCHAR(255),
	livemode BOOLEAN,
	wanted_version BIGINT NOT NULL,
	applied_version BIGINT NOT NULL,
	applied_customer VARCHAR(64),
	applied_plan VARCHAR(255),
	applied_next_plan VARCHAR(255),
	payer_id VARCHAR(255),
	synced_at DATETIME,
	state VARCHAR(8) NOT NULL,
	attempts INTEGER NOT NULL,
	next_attempt_at DATETIME,
	rest_until DATETIME,
	sweep_at DATETIME NOT NULL,
	error_kind VARCHAR(32),
	error_code VARCHAR(255),
	error_message TEXT,
	error_request_id VARCHAR(255),
	error_at DATETIME,
	lease_token VARCHAR(36),
	lease_until DATETIME,
	generation INTEGER NOT NULL,
	intent JSON, made_at DATETIME, hinted BIGINT DEFAULT '0' NOT NULL, looked BIGINT DEFAULT '0' NOT NULL, payment VARCHAR(16), payment_since DATETIME, payment_code VARCHAR(255),
	PRIMARY KEY (org_id, provider),
	FOREIGN KEY(org_id) REFERENCES organizations (id)
);

CREATE INDEX ix_billing_links_parked ON billing_links (provider) WHERE state <> 'open';

CREATE UNIQUE INDEX uq_billing_links_customer_id ON billing_links (provider, customer_id) WHERE customer_id IS NOT NULL;

CREATE TABLE jobs (
	name VARCHAR(64) NOT NULL,
	lease_token VARCHAR(36),
	lease_until DATETIME,
	PRIMARY KEY (name)
);

CREATE TABLE billers (
	provider VARCHAR(16) NOT NULL,
	account_id VARCHAR(255),
	livemode BOOLEAN,
	failures INTEGER NOT NULL,
	stop_kind VARCHAR(16),
	stop_message TEXT,
	stopped_since DATETIME,
	probe_at DATETIME,
	updated_at DATETIME,
	PRIMARY KEY (provider)
);

CREATE TABLE drift_plans (
	run_id VARCHAR(36) NOT NULL,
	plan_id VARCHAR(64),
	token VARCHAR(36) NOT NULL,
	stage VARCHAR(32) NOT NULL,
	cursor VARCHAR(255),
	done INTEGER NOT NULL,
	counts JSON NOT NULL,
	started_at DATETIME NOT NULL,
	touched_at DATETIME NOT NULL,
	finished_at DATETIME,
	applied_at DATETIME,
	PRIMARY KEY (run_id),
	UNIQUE (plan_id)
);

CREATE INDEX ix_drift_plans_started_at ON drift_plans (started_at);

CREATE TABLE drift_sightings (
	run_id VARCHAR(36) NOT NULL,
	provider VARCHAR(16) NOT NULL,
	noun VARCHAR(16) NOT NULL,
	id VARCHAR(255) NOT NULL,
	org_id VARCHAR(64),
	customer_id VARCHAR(255),
	seen JSON NOT NULL,
	PRIMARY KEY (run_id, provider, noun, id),
	FOREIGN KEY(run_id) REFERENCES drift_plans (run_id) ON DELETE CASCADE
);

CREATE INDEX ix_drift_sightings_org_id ON drift_sightings (run_id, provider, noun, org_id);

CREATE INDEX ix_drift_sightings_customer_id ON drift_sightings (run_id, provider, noun, customer_id);

CREATE TABLE drift_findings (
	run_id VARCHAR(36) NOT NULL,
	seq INTEGER NOT NULL,
	org_id VARCHAR(64),
	repairable BOOLEAN NOT NULL,
	found JSON NOT NULL,
	PRIMARY KEY (run_id, seq),
	FOREIGN KEY(run_id) REFERENCES drift_plans (run_id) ON DELETE CASCADE
);

CREATE TABLE people (
	user_id VARCHAR(255) NOT NULL,
	name VARCHAR(200),
	email VARCHAR(512),
	first_seen_at DATETIME NOT NULL,
	last_seen_at DATETIME NOT NULL,
	PRIMARY KEY (user_id)
);

CREATE TABLE api_keys (
	id VARCHAR(16) NOT NULL,
	name VARCHAR(100) NOT NULL,
	secret_hash VARCHAR(64) NOT NULL,
	scopes VARCHAR(500) NOT NULL,
	created_at DATETIME NOT NULL,
	revoked_at DATETIME,
	PRIMARY KEY (id)
);

CREATE TABLE kept_answers (
	caller VARCHAR(300) NOT NULL,
	"key" VARCHAR(255) NOT NULL,
	fingerprint VARCHAR(64) NOT NULL,
	status INTEGER NOT NULL,
	body TEXT NOT NULL,
	expires_at DATETIME NOT NULL,
	PRIMARY KEY (caller, "key")
);

CREATE INDEX ix_kept_answers_expires_at ON kept_answers (expires_at);

CREATE TABLE hints (
	provider VARCHAR(16) NOT NULL,
	id VARCHAR(255) NOT NULL,
	type VARCHAR(255) NOT NULL,
	concern VARCHAR(16),
	object_id VARCHAR(255),
	customer_id VARCHAR(255),
	org_id VARCHAR(64),
	code VARCHAR(255),
	account_id VARCHAR(255),
	livemode BOOLEAN,
	received_at DATETIME NOT NULL,
	state VARCHAR(8) NOT NULL,
	reason TEXT,
	due_at DATETIME NOT NULL,
	PRIMARY KEY (provider, id)
);

CREATE INDEX ix_hints_stored ON hints (due_at) WHERE state = 'stored';

CREATE INDEX ix_hints_received_at ON hints (received_at);

CREATE INDEX ix_billing_links_due ON billing_links (provider, sweep_at) WHERE state = 'open' AND (applied_version < wanted_version OR intent IS NOT NULL OR looked < hinted);

CREATE TABLE invitations (
	id VARCHAR(64) NOT NULL,
	org_id VARCHAR(64) NOT NULL,
	email VARCHAR(512) NOT NULL,
	email_key VARCHAR(1024) NOT NULL,
	role VARCHAR(16) NOT NULL,
	invited_by VARCHAR(255),
	state VARCHAR(16) NOT NULL,
	mailed INTEGER NOT NULL,
	created_at DATETIME NOT NULL,
	expires_at DATETIME NOT NULL,
	closed_at DATETIME,
	PRIMARY KEY (id),
	FOREIGN KEY(org_id) REFERENCES organizations (id)
);

CREATE UNIQUE INDEX uq_invitations_open ON invitations (org_id, email_key) WHERE state = 'open';

CREATE TABLE invitation_tokens (
	token_hash VARCHAR(64) NOT NULL,
	invitation_id VARCHAR(64) NOT NULL,
	expires_at DATETIME NOT NULL,
	PRIMARY KEY (token_hash),
	FOREIGN KEY(invitation_id) REFERENCES invitations (id)
);

CREATE TABLE mails (
	id VARCHAR(36) NOT NULL,
	cause VARCHAR(80) NOT NULL,
	kind VARCHAR(32) NOT NULL,
	recipient VARCHAR(512) NOT NULL,
	org_id VARCHAR(64) NOT NULL,
	invitation_id VARCHAR(64),
	waits_for_version BIGINT,
	state VARCHAR(16) NOT NULL,
	attempts INTEGER NOT NULL,
	next_attempt_at DATETIME NOT NULL,
	error TEXT,
	created_at DATETIME NOT NULL,
	closed_at DATETIME,
	lease_token VARCHAR(36),
	lease_until DATETIME,
	PRIMARY KEY (id),
	FOREIGN KEY(invitation_id) REFERENCES invitations (id)
);

CREATE UNIQUE INDEX uq_mails_cause ON mails (cause, kind, recipient);

CREATE INDEX ix_mails_due ON mails (next_attempt_at) WHERE state = 'open';

CREATE INDEX ix_mails_given_up ON mails (created_at) WHERE state = 'given_up';

CREATE INDEX ix_mails_org_id ON mails (org_id, kind, created_at);

CREATE INDEX ix_mails_closed_at ON mails (closed_at) WHERE state <> 'open';

CREATE TABLE webhook_endpoints (
	id VARCHAR(32) NOT NULL,
	url VARCHAR(2000) NOT NULL,
	events VARCHAR(1000) NOT NULL,
	description VARCHAR(200),
	generation INTEGER NOT NULL,
	rotated_at DATETIME,
	created_at DATETIME NOT NULL,
	disabled_at DATETIME,
	disabled_because VARCHAR(200),
	failures INTEGER NOT NULL,
	rest_until DATETIME,
	PRIMARY KEY (id)
);

CREATE TABLE webhook_deliveries (
	endpoint_id VARCHAR(32) NOT NULL,
	event_seq INTEGER NOT NULL,
	type VARCHAR(64) NOT NULL,
	state VARCHAR(16) NOT NULL,
	attempts INTEGER NOT NULL,
	next_attempt_at DATETIME NOT NULL,
	made_at DATETIME NOT NULL,
	lease_token VARCHAR(36),
	lease_until DATETIME,
	last_attempt_at DATETIME,
	last_status INTEGER,
	last_error VARCHAR(32),
	delivered_at DATETIME,
	PRIMARY KEY (endpoint_id, event_seq),
	FOREIGN KEY(endpoint_id) REFERENCES webhook_endpoints (id),
	FOREIGN KEY(event_seq) REFERENCES events (seq)
);

CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries (endpoint_id, next_attempt_at) WHERE state = 'pending';

CREATE INDEX ix_webhook_deliveries_leased ON webhook_deliveries (endpoint_id) WHERE lease_token IS NOT NULL;

CREATE INDEX ix_webhook_deliveries_failed ON webhook_deliveries (last_attempt_at) WHERE state = 'failed';

CREATE INDEX ix_organizations_created_at ON organizations (created_at, id);

INSERT INTO alembic_version VALUES ('0009');
