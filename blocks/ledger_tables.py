"""The tables of the ledger. Times are seconds since the epoch."""

import sqlalchemy as sa

meta = sa.MetaData()

releases = sa.Table(
    "releases",
    meta,
    sa.Column("id", sa.String(160), primary_key=True),
    sa.Column("service", sa.String(64), nullable=False),
    sa.Column("environment", sa.String(64), nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("version", sa.String(200), nullable=False),
    sa.Column("artifact", sa.String(128), nullable=False),
    sa.Column("content", sa.Text, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("promoted_at", sa.Float),
    sa.Column("removed_at", sa.Float),
    sa.UniqueConstraint("service", "environment", "number"),
)
rollouts = sa.Table(
    "rollouts",
    meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("service", sa.String(64), nullable=False),
    sa.Column("environment", sa.String(64), nullable=False),
    sa.Column("kind", sa.String(16), nullable=False),
    sa.Column("version", sa.String(200), nullable=False),
    sa.Column("release_id", sa.String(160)),
    sa.Column("stable_id", sa.String(160)),
    sa.Column("strategy", sa.String(16), nullable=False),
    sa.Column("phase", sa.String(16), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("flow_run_id", sa.String(64), index=True),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Column("approved_by", sa.String(200)),
    sa.Column("approved_at", sa.Float),
    sa.Column("abort_reason", sa.Text),
    sa.Column("freeze_override", sa.Text),
    sa.Column("freeze_override_by", sa.String(200)),
    sa.Column("unsafe_reason", sa.Text),
    sa.Column("unsafe_by", sa.String(200)),
    sa.Column("notify", sa.JSON(none_as_null=True)),
    sa.Column("leader", sa.String(200)),  # the process that began it
    sa.Column("taken_over", sa.Text),  # why somebody else had to end it
    sa.Column("closed_at", sa.Float),  # when that was reported and told to Prefect
    sa.Column("left_run", sa.String(64)),  # flow run that died before, still to be told to Prefect
    sa.Column(
        "change_id", sa.Integer, index=True
    ),  # of which change of several services it is part
    sa.Index("rollouts_of", "service", "environment", "id"),
)
intents = sa.Table(
    "intents",
    meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), nullable=False),
    sa.Column("key", sa.String(300), nullable=False),
    sa.Column("act", sa.String(40), nullable=False),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("outcome_at", sa.Float),
    sa.Index("intents_of", "rollout_id", "id"),
)
decisions = sa.Table(
    "decisions",
    meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("share", sa.Integer, nullable=False),
    sa.Column("verdict", sa.String(10)),
    sa.Column("reason", sa.Text, nullable=False),
)
samples = sa.Table(
    "samples",
    meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), nullable=False, index=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("share", sa.Integer, nullable=False),
    sa.Column("new", sa.JSON),
    sa.Column("stable", sa.JSON),
    sa.Column("values", sa.JSON(none_as_null=True)),  # custom metrics
)
evidence = sa.Table(  # what tests, scans and gates said of an artifact before it was released
    "evidence",
    meta,
    sa.Column("rollout_id", sa.ForeignKey("rollouts.id"), primary_key=True),
    sa.Column("content", sa.JSON, nullable=False),
)
stables = sa.Table(
    "stables",
    meta,
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("release_id", sa.String(160), nullable=False),
    sa.Column("since", sa.Float, nullable=False),
)
leases = sa.Table(
    "leases",
    meta,
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("environment", sa.String(64), primary_key=True),
    sa.Column("token", sa.String(40), nullable=False),
    sa.Column("holder", sa.String(300), nullable=False),
    sa.Column("rollout_id", sa.Integer, nullable=False),
    sa.Column("taken_at", sa.Float, nullable=False),
    sa.Column("expires_at", sa.Float, nullable=False),
    # Null in leases that an older version took: these end by time alone.
    sa.Column("renewals", sa.Integer),
    sa.Column("machine", sa.String(200)),
    sa.Column("pid", sa.Integer),
    sa.Column("pid_started", sa.String(40)),
)
changes = sa.Table(  # several services released as one
    "changes",
    meta,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("stack", sa.String(64), nullable=False),
    sa.Column("environment", sa.String(64), nullable=False),
    sa.Column("version", sa.String(200), nullable=False),
    sa.Column("file", sa.Text, nullable=False),
    sa.Column("at_once", sa.Integer, nullable=False),
    sa.Column("by", sa.String(200), nullable=False),
    sa.Column("flow_run_id", sa.String(64), index=True),
    sa.Column("leader", sa.String(200)),
    sa.Column("started_at", sa.Float, nullable=False),
    sa.Column("trouble", sa.Text),
    sa.Column("verdict", sa.String(16)),  # null until it is over
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("finished_at", sa.Float),
    sa.Index("changes_of", "stack", "environment", "id"),
)
change_members = sa.Table(
    "change_members",
    meta,
    sa.Column("change_id", sa.ForeignKey("changes.id"), primary_key=True),
    sa.Column("service", sa.String(64), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("after", sa.JSON, nullable=False),
    sa.Column("parameters", sa.JSON, nullable=False),
    sa.Column("asked_at", sa.Float),  # written before its release is asked for
    sa.Column("run_id", sa.String(64)),
    sa.Column("cancelled", sa.Boolean, nullable=False),
    sa.Column("back_attempts", sa.Integer, nullable=False),
    sa.Column("back_run_id", sa.String(64)),
    sa.Column("kept", sa.Text),  # why it is not taken back
)
audit = sa.Table(  # who did what: a chain of hashes, policy/audit.py
    "audit",
    meta,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("actor", sa.String(200), nullable=False),
    sa.Column("action", sa.String(40), nullable=False),
    sa.Column("subject", sa.String(300), nullable=False, index=True),
    sa.Column("detail", sa.JSON, nullable=False),
    sa.Column("before", sa.String(64), nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
audit_head = sa.Table(  # one row; whoever appends holds it
    "audit_head",
    meta,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("hash", sa.String(64), nullable=False),
)
