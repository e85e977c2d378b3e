CREATE TABLE alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE api_keys (
    id character varying(16) NOT NULL,
    name character varying(100) NOT NULL,
    secret_hash character varying(64) NOT NULL,
    scopes character varying(500) NOT NULL,
    created_at timestamp with time zone NOT NULL,
    revoked_at timestamp with time zone
);

CREATE TABLE billers (
    provider character varying(16) NOT NULL,
    account_id character varying(255),
    livemode boolean,
    failures integer NOT NULL,
    stop_kind character varying(16),
    stop_message text,
    stopped_since timestamp with time zone,
    probe_at timestamp with time zone,
    updated_at timestamp with time zone
);

CREATE TABLE billing_links (
    org_id character varying(64) NOT NULL,
    provider character varying(16) NOT NULL,
    customer_id character varying(255),
    subscription_id character varying(255),
    account_id character varying(255),
    livemode boolean,
    wanted_version bigint NOT NULL,
    applied_version bigint NOT NULL,
    applied_customer character varying(64),
    applied_plan character varying(255),
    applied_next_plan character varying(255),
    payer_id character varying(255),
    synced_at timestamp with time zone,
    state character varying(8) NOT NULL,
    attempts integer NOT NULL,
    next_attempt_at timestamp with time zone,
    rest_until timestamp with time zone,
    sweep_at timestamp with time zone NOT NULL,
    error_kind character varying(32),
    error_code character varying(255),
    error_message text,
    error_request_id character varying(255),
    error_at timestamp with time zone,
    lease_token character varying(36),
    lease_until timestamp with time zone,
    generation integer NOT NULL,
    intent jsonb,
    made_at timestamp with time zone,
    hinted bigint DEFAULT '0'::bigint NOT NULL,
    looked bigint DEFAULT '0'::bigint NOT NULL,
    payment character varying(16),
    payment_since timestamp with time zone,
    payment_code character varying(255)
);

CREATE TABLE drift_findings (
    run_id character varying(36) NOT NULL,
    seq integer NOT NULL,
    org_id character varying(64),
    repairable boolean NOT NULL,
    found jsonb NOT NULL
);

CREATE TABLE drift_plans (
    run_id character varying(36) NOT NULL,
    plan_id character varying(64),
    token character varying(36) NOT NULL,
    stage character varying(32) NOT NULL,
    cursor character varying(255),
    done integer NOT NULL,
    counts jsonb NOT NULL,
    started_at timestamp with time zone NOT NULL,
    touched_at timestamp with time zone NOT NULL,
    finished_at timestamp with time zone,
    applied_at timestamp with time zone
);

CREATE TABLE drift_sightings (
    run_id character varying(36) NOT NULL,
    provider character varying(16) NOT NULL,
    noun character varying(16) NOT NULL,
    id character varying(255) NOT NULL,
    org_id character varying(64),
    customer_id character varying(255),
    seen jsonb NOT NULL
);

CREATE TABLE events (
    seq bigint NOT NULL,
    id character varying(36) NOT NULL,
    type character varying(64) NOT NULL,
    org_id character varying(64) NOT NULL,
    actor character varying(255) NOT NULL,
    source character varying(255) NOT NULL,
    caused_by character varying(600),
    data jsonb NOT NULL,
    occurred_at timestamp with time zone NOT NULL,
    published_at timestamp with time zone,
    lease_token character varying(36),
    lease_until timestamp with time zone
);

CREATE SEQUENCE events_seq_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

ALTER SEQUENCE events_seq_seq OWNED BY events.seq;

CREATE TABLE hints (
    provider character varying(16) NOT NULL,
    id character varying(255) NOT NULL,
    type character varying(255) NOT NULL,
    concern character varying(16),
    object_id character varying(255),
    customer_id character varying(255),
    org_id character varying(64),
    code character varying(255),
    account_id character varying(255),
    livemode boolean,
    received_at timestamp with time zone NOT NULL,
    state character varying(8) NOT NULL,
    reason text,
    due_at timestamp with time zone NOT NULL
);

CREATE TABLE invitation_tokens (
    token_hash character varying(64) NOT NULL,
    invitation_id character varying(64) NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

CREATE TABLE invitations (
    id character varying(64) NOT NULL,
    org_id character varying(64) NOT NULL,
    email character varying(512) NOT NULL,
    email_key character varying(1024) NOT NULL,
    role character varying(16) NOT NULL,
    invited_by character varying(255),
    state character varying(16) NOT NULL,
    mailed integer NOT NULL,
    created_at timestamp with time zone NOT NULL,
    expires_at timestamp with time zone NOT NULL,
    closed_at timestamp with time zone
);

CREATE TABLE jobs (
    name character varying(64) NOT NULL,
    lease_token character varying(36),
    lease_until timestamp with time zone
);

CREATE TABLE kept_answers (
    caller character varying(300) NOT NULL,
    key character varying(255) NOT NULL,
    fingerprint character varying(64) NOT NULL,
    status integer NOT NULL,
    body text NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

CREATE TABLE mails (
    id character varying(36) NOT NULL,
    cause character varying(80) NOT NULL,
    kind character varying(32) NOT NULL,
    recipient character varying(512) NOT NULL,
    org_id character varying(64) NOT NULL,
    invitation_id character varying(64),
    waits_for_version bigint,
    state character varying(16) NOT NULL,
    attempts integer NOT NULL,
    next_attempt_at timestamp with time zone NOT NULL,
    error text,
    created_at timestamp with time zone NOT NULL,
    closed_at timestamp with time zone,
    lease_token character varying(36),
    lease_until timestamp with time zone
);

CREATE TABLE memberships (
    org_id character varying(64) NOT NULL,
    user_id character varying(255) NOT NULL,
    role character varying(16) NOT NULL,
    joined_at timestamp with time zone NOT NULL
);

CREATE TABLE organizations (
    id character varying(64) NOT NULL,
    name character varying(200) NOT NULL,
    name_key character varying(1000) NOT NULL,
    plan_tier character varying(200) NOT NULL,
    pending_plan_tier character varying(200),
    plan_effective_at timestamp with time zone,
    status character varying(16) NOT NULL,
    billing_email character varying(512),
    currency character varying(3),
    created_at timestamp with time zone NOT NULL,
    updated_at timestamp with time zone NOT NULL,
    billing_version bigint NOT NULL
);

CREATE TABLE people (
    user_id character varying(255) NOT NULL,
    name character varying(200),
    email character varying(512),
    first_seen_at timestamp with time zone NOT NULL,
    last_seen_at timestamp with time zone NOT NULL
);

CREATE TABLE received_events (
    source character varying(255) NOT NULL,
    id character varying(255) NOT NULL,
    type character varying(255),
    subject character varying(255),
    occurred_at timestamp with time zone,
    received_at timestamp with time zone NOT NULL,
    verdict character varying(16) NOT NULL,
    reason text,
    org_id character varying(64),
    data jsonb
);

CREATE TABLE webhook_deliveries (
    endpoint_id character varying(32) NOT NULL,
    event_seq bigint NOT NULL,
    type character varying(64) NOT NULL,
    state character varying(16) NOT NULL,
    attempts integer NOT NULL,
    next_attempt_at timestamp with time zone NOT NULL,
    made_at timestamp with time zone NOT NULL,
    lease_token character varying(36),
    lease_until timestamp with time zone,
    last_attempt_at timestamp with time zone,
    last_status integer,
    last_error character varying(32),
    delivered_at timestamp with time zone
);

CREATE TABLE webhook_endpoints (
    id character varying(32) NOT NULL,
    url character varying(2000) NOT NULL,
    events character varying(1000) NOT NULL,
    description character varying(200),
    generation integer NOT NULL,
    rotated_at timestamp with time zone,
    created_at timestamp with time zone NOT NULL,
    disabled_at timestamp with time zone,
    disabled_because character varying(200),
    failures integer NOT NULL,
    rest_until timestamp with time zone
);

ALTER TABLE ONLY events ALTER COLUMN seq SET DEFAULT nextval('events_seq_seq'::regclass);

ALTER TABLE ONLY alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY api_keys
    ADD CONSTRAINT api_keys_pkey PRIMARY KEY (id);

ALTER TABLE ONLY billers
    ADD CONSTRAINT billers_pkey PRIMARY KEY (provider);

ALTER TABLE ONLY billing_links
    ADD CONSTRAINT billing_links_pkey PRIMARY KEY (org_id, provider);

ALTER TABLE ONLY drift_findings
    ADD CONSTRAINT drift_findings_pkey PRIMARY KEY (run_id, seq);

ALTER TABLE ONLY drift_plans
    ADD CONSTRAINT drift_plans_pkey PRIMARY KEY (run_id);

ALTER TABLE ONLY drift_plans
    ADD CONSTRAINT drift_plans_plan_id_key UNIQUE (plan_id);

ALTER TABLE ONLY drift_sightings
    ADD CONSTRAINT drift_sightings_pkey PRIMARY KEY (run_id, provider, noun, id);

ALTER TABLE ONLY events
    ADD CONSTRAINT events_id_key UNIQUE (id);

ALTER TABLE ONLY events
    ADD CONSTRAINT events_pkey PRIMARY KEY (seq);

ALTER TABLE ONLY hints
    ADD CONSTRAINT hints_pkey PRIMARY KEY (provider, id);

ALTER TABLE ONLY invitation_tokens
    ADD CONSTRAINT invitation_tokens_pkey PRIMARY KEY (token_hash);

ALTER TABLE ONLY invitations
    ADD CONSTRAINT invitations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY jobs
    ADD CONSTRAINT jobs_pkey PRIMARY KEY (name);

ALTER TABLE ONLY kept_answers
    ADD CONSTRAINT kept_answers_pkey PRIMARY KEY (caller, key);

ALTER TABLE ONLY mails
    ADD CONSTRAINT mails_pkey PRIMARY KEY (id);

ALTER TABLE ONLY memberships
    ADD CONSTRAINT memberships_pkey PRIMARY KEY (org_id, user_id);

ALTER TABLE ONLY organizations
    ADD CONSTRAINT organizations_pkey PRIMARY KEY (id);

ALTER TABLE ONLY people
    ADD CONSTRAINT people_pkey PRIMARY KEY (user_id);

ALTER TABLE ONLY received_events
    ADD CONSTRAINT received_events_pkey PRIMARY KEY (source, id);

ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_pkey PRIMARY KEY (endpoint_id, event_seq);

ALTER TABLE ONLY webhook_endpoints
    ADD CONSTRAINT webhook_endpoints_pkey PRIMARY KEY (id);

CREATE INDEX ix_billing_links_due ON billing_links USING btree (provider, sweep_at) WHERE (((state)::text = 'open'::text) AND ((applied_version < wanted_version) OR (intent IS NOT NULL) OR (looked < hinted)));

CREATE INDEX ix_billing_links_parked ON billing_links USING btree (provider) WHERE ((state)::text <> 'open'::text);

CREATE INDEX ix_drift_plans_started_at ON drift_plans USING btree (started_at);

CREATE INDEX ix_drift_sightings_customer_id ON drift_sightings USING btree (run_id, provider, noun, customer_id);

CREATE INDEX ix_drift_sightings_org_id ON drift_sightings USING btree (run_id, provider, noun, org_id);

CREATE INDEX ix_events_org_id ON events USING btree (org_id, seq);

CREATE INDEX ix_events_unpublished ON events USING btree (seq) WHERE (published_at IS NULL);

CREATE INDEX ix_hints_received_at ON hints USING btree (received_at);

CREATE INDEX ix_hints_stored ON hints USING btree (due_at) WHERE ((state)::text = 'stored'::text);

CREATE INDEX ix_kept_answers_expires_at ON kept_answers USING btree (expires_at);

CREATE INDEX ix_mails_closed_at ON mails USING btree (closed_at) WHERE ((state)::text <> 'open'::text);

CREATE INDEX ix_mails_due ON mails USING btree (next_attempt_at) WHERE ((state)::text = 'open'::text);

CREATE INDEX ix_mails_given_up ON mails USING btree (created_at) WHERE ((state)::text = 'given_up'::text);

CREATE INDEX ix_mails_org_id ON mails USING btree (org_id, kind, created_at);

CREATE INDEX ix_memberships_user_id ON memberships USING btree (user_id);

CREATE INDEX ix_organizations_created_at ON organizations USING btree (created_at, id);

CREATE INDEX ix_organizations_plan_effective_at ON organizations USING btree (plan_effective_at) WHERE (pending_plan_tier IS NOT NULL);

CREATE INDEX ix_organizations_plan_tier ON organizations USING btree (plan_tier);

CREATE INDEX ix_received_events_subject ON received_events USING btree (subject, type, verdict);

CREATE INDEX ix_received_events_verdict ON received_events USING btree (verdict, received_at);

CREATE INDEX ix_webhook_deliveries_due ON webhook_deliveries USING btree (endpoint_id, next_attempt_at) WHERE ((state)::text = 'pending'::text);

CREATE INDEX ix_webhook_deliveries_failed ON webhook_deliveries USING btree (last_attempt_at) WHERE ((state)::text = 'failed'::text);

CREATE INDEX ix_webhook_deliveries_leased ON webhook_deliveries USING btree (endpoint_id) WHERE (lease_token IS NOT NULL);

CREATE UNIQUE INDEX uq_billing_links_customer_id ON billing_links USING btree (provider, customer_id) WHERE (customer_id IS NOT NULL);

CREATE UNIQUE INDEX uq_invitations_open ON invitations USING btree (org_id, email_key) WHERE ((state)::text = 'open'::text);

CREATE UNIQUE INDEX uq_mails_cause ON mails USING btree (cause, kind, recipient);

CREATE UNIQUE INDEX uq_organizations_name_key ON organizations USING btree (name_key) WHERE ((status)::text <> 'deleted'::text);

ALTER TABLE ONLY billing_links
    ADD CONSTRAINT billing_links_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations(id);

ALTER TABLE ONLY drift_findings
    ADD CONSTRAINT drift_findings_run_id_fkey FOREIGN KEY (run_id) REFERENCES drift_plans(run_id) ON DELETE CASCADE;

ALTER TABLE ONLY drift_sightings
    ADD CONSTRAINT drift_sightings_run_id_fkey FOREIGN KEY (run_id) REFERENCES drift_plans(run_id) ON DELETE CASCADE;

ALTER TABLE ONLY invitation_tokens
    ADD CONSTRAINT invitation_tokens_invitation_id_fkey FOREIGN KEY (invitation_id) REFERENCES invitations(id);

ALTER TABLE ONLY invitations
    ADD CONSTRAINT invitations_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations(id);

ALTER TABLE ONLY mails
    ADD CONSTRAINT mails_invitation_id_fkey FOREIGN KEY (invitation_id) REFERENCES invitations(id);

ALTER TABLE ONLY memberships
    ADD CONSTRAINT memberships_org_id_fkey FOREIGN KEY (org_id) REFERENCES organizations(id);

ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_endpoint_id_fkey FOREIGN KEY (endpoint_id) REFERENCES webhook_endpoints(id);

ALTER TABLE ONLY webhook_deliveries
    ADD CONSTRAINT webhook_deliveries_event_seq_fkey FOREIGN KEY (event_seq) REFERENCES events(seq);

INSERT INTO alembic_version VALUES ('0009');
