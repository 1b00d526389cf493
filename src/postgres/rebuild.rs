//! A second version of a projection's table beside the live one, and its way into the live one's place.
//!
//! Nothing is renamed: the new version has the table's own name in a schema of its own, [`NEW_SCHEMA`]. A connection that looks
//! there first runs the very statements that the projection always runs. To swap is to move tables from one schema to the other,
//! which takes their indexes, constraints and rights along.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, SecondsFormat, Utc};
use sqlx::{AssertSqlSafe, Connection, PgConnection, Postgres, Row, Transaction};

use crate::log::Position;
use crate::postgres::{Database, is_transient};

/// Where a table is made anew.
const NEW_SCHEMA: &str = "wallex_rebuild";
/// Where the table goes that was replaced, until somebody drops it.
const PREVIOUS_SCHEMA: &str = "wallex_previous";

/// How long another rebuild of the same projection is waited for: one whose process was killed a moment ago is gone soon.
const LOCK_PATIENCE: &str = "5s";
/// How long the swap waits for those who read the table just then. Everybody who comes after it waits as long.
const READERS_PATIENCE: &str = "500ms";

/// Which table is made anew, and what has to be known of it.
#[derive(Debug)]
pub(crate) struct RebuiltTable {
    /// The projection's name.
    pub(crate) projection: &'static str,
    /// The table's name. It has a column `position`: that of the event that wrote the row last.
    pub(crate) name: &'static str,
    /// The columns of its primary key.
    pub(crate) key: &'static [&'static str],
    /// The column that names the wallet.
    pub(crate) wallet: &'static str,
    /// Whether the projection looks its own rows up while it writes, so that the indexes have to be there before the rows.
    pub(crate) reads_itself: bool,
}

/// How far a projection's live tables are, at one moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Frontier {
    /// By partition: each event up to here is in the tables, but for those left out.
    pub(crate) positions: BTreeMap<i32, Position>,
    /// Positions of events that are parked, or were discarded for good.
    pub(crate) left_out: BTreeSet<Position>,
}

/// A table that was replaced and is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeptTable {
    /// Its name with its schema, as it is written in a statement.
    pub name: String,
    /// Since when, and as of which position.
    pub note: Option<String>,
    /// What it takes on disk, with its indexes.
    pub bytes: i64,
}

/// A row that differs: as JSON text, `None` where there is none.
#[derive(Clone, Debug)]
pub(crate) struct DifferingRow {
    pub(crate) live: Option<String>,
    pub(crate) rebuilt: Option<String>,
}

/// What a comparison has found.
#[derive(Clone, Debug, Default)]
pub(crate) struct Comparison {
    /// How many rows were held against each other.
    pub(crate) rows: i64,
    pub(crate) differing: i64,
    /// The first that differ, by wallet.
    pub(crate) first: Vec<DifferingRow>,
}

/// Which rows are compared.
#[derive(Clone, Debug)]
pub(crate) enum Compared {
    /// All of them.
    Whole,
    /// Those that were written by events after a position, or by these.
    Since(Position, Vec<Position>),
}

/// The connection of a rebuild: it alone sees the new table in the place of the live one. It holds the lock that keeps others from
/// rebuilding the same projection, so the lock is gone with it.
pub(crate) struct RebuildSession {
    pub(crate) connection: PgConnection,
    table: &'static RebuiltTable,
    /// The live table's schema, quoted.
    live_schema: String,
    /// The live table's object number.
    live: i64,
}

impl RebuildSession {
    /// Begins; `None` while another rebuild of this projection is at work.
    pub(crate) async fn begin(database: &Database, table: &'static RebuiltTable) -> Result<Option<Self>, sqlx::Error> {
        let mut connection = PgConnection::connect_with(database.connect_options()).await?;
        set(&mut connection, "lock_timeout", LOCK_PATIENCE, false).await?;
        let lock = "SELECT pg_advisory_lock(hashtextextended('wallex rebuild ' || $1, 0))";
        match sqlx::query(lock).bind(table.projection).execute(&mut connection).await {
            Err(error) if is_lock_timeout(&error) => return Ok(None),
            done => done?,
        };
        set(&mut connection, "lock_timeout", "0", false).await?;
        let statement = "SELECT c.oid::bigint, quote_ident(n.nspname)
                           FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = $1::regclass";
        let row = sqlx::query(statement).bind(table.name).fetch_one(&mut connection).await?;
        Ok(Some(RebuildSession { live: row.try_get(0)?, live_schema: row.try_get(1)?, connection, table }))
    }

    /// The version that was replaced last, if it is still there.
    pub(crate) async fn kept(&mut self) -> Result<Option<KeptTable>, sqlx::Error> {
        let statement =
            "SELECT c.oid::regclass::text, obj_description(c.oid, 'pg_class'), pg_total_relation_size(c.oid)
                           FROM pg_class c WHERE c.oid = to_regclass($1)";
        let row = sqlx::query(statement).bind(self.previous_name()).fetch_optional(&mut self.connection).await?;
        row.map(|row| Ok(KeptTable { name: row.try_get(0)?, note: row.try_get(1)?, bytes: row.try_get(2)? }))
            .transpose()
    }

    /// Drops the version that was replaced last.
    pub(crate) async fn drop_kept(&mut self) -> Result<(), sqlx::Error> {
        let drop = format!("DROP TABLE {}", self.previous_name());
        run(&mut self.connection, drop).await
    }

    /// What hangs on the live table itself and would go on with it when another takes its place: views, triggers, foreign keys,
    /// policies, publications, heirs.
    pub(crate) async fn dependents(&mut self) -> Result<Vec<String>, sqlx::Error> {
        let statement = "
            SELECT format('view %s', r.ev_class::regclass) FROM pg_depend d JOIN pg_rewrite r ON r.oid = d.objid
             WHERE d.classid = 'pg_rewrite'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = $1::oid
             UNION SELECT format('trigger %I', tgname) FROM pg_trigger WHERE tgrelid = $1::oid AND NOT tgisinternal
             UNION SELECT format('foreign key %I of %s', conname, conrelid::regclass) FROM pg_constraint
             WHERE contype = 'f' AND $1::oid IN (conrelid, confrelid)
             UNION SELECT format('policy %I', polname) FROM pg_policy WHERE polrelid = $1::oid
             UNION SELECT format('publication %I', pubname) FROM pg_publication p JOIN pg_publication_rel r ON r.prpubid = p.oid
             WHERE prrelid = $1::oid
             UNION SELECT format('table %s', inhrelid::regclass) FROM pg_inherits WHERE inhparent = $1::oid
             ORDER BY 1";
        sqlx::query_scalar(statement).bind(self.live).fetch_all(&mut self.connection).await
    }

    /// Makes the new table, empty, with everything that the live one has but its indexes; and from here on this connection looks
    /// there first. What a rebuild that was not finished has left is dropped; whether there was any.
    pub(crate) async fn make_table(&mut self) -> Result<bool, sqlx::Error> {
        let RebuiltTable { name, .. } = self.table;
        let new = format!("{NEW_SCHEMA}.{name}");
        let left: bool =
            sqlx::query_scalar("SELECT to_regclass($1) IS NOT NULL").bind(&new).fetch_one(&mut self.connection).await?;
        let options: Option<String> = sqlx::query_scalar(
            "SELECT string_agg(format('%I = %L', option_name, option_value), ', ')
               FROM pg_class c, pg_options_to_table(c.reloptions) WHERE c.oid = $1::oid",
        )
        .bind(self.live)
        .fetch_one(&mut self.connection)
        .await?;
        let options = options.map_or(String::new(), |options| format!(" WITH ({options})"));
        let rights: Vec<String> =
            sqlx::query_scalar(RIGHTS).bind(self.live).bind(&new).fetch_all(&mut self.connection).await?;
        let mut transaction = self.connection.begin().await?;
        run(&mut transaction, format!("CREATE SCHEMA IF NOT EXISTS {NEW_SCHEMA}")).await?;
        run(&mut transaction, format!("DROP TABLE IF EXISTS {new}")).await?;
        let like = format!("LIKE {}.{name} INCLUDING ALL EXCLUDING INDEXES", self.live_schema);
        run(&mut transaction, format!("CREATE TABLE {new} ({like}){options}")).await?;
        for right in rights {
            run(&mut transaction, right).await?;
        }
        transaction.commit().await?;
        let search_path: String =
            sqlx::query_scalar("SELECT current_setting('search_path')").fetch_one(&mut self.connection).await?;
        set(&mut self.connection, "search_path", &format!("{NEW_SCHEMA}, {search_path}"), false).await?;
        // What is lost with the server is made again: only the swap has to last, and everything before it lasts with it.
        set(&mut self.connection, "synchronous_commit", "off", false).await?;
        Ok(left)
    }

    /// Gives the new table the live one's indexes, under their own names.
    pub(crate) async fn make_indexes(&mut self) -> Result<(), sqlx::Error> {
        let RebuiltTable { name, .. } = self.table;
        // The schema is always part of a definition: the new table's takes its place.
        let statement = "
            SELECT replace(pg_get_indexdef(i.indexrelid), format(' ON %s.%I ', $2::text, $3::text),
                           format(' ON %I.%I ', $4::text, $3::text)),
                   CASE WHEN c.conname IS NOT NULL
                        THEN format('ALTER TABLE %I.%I ADD CONSTRAINT %I %s USING INDEX %I', $4::text, $3::text, c.conname,
                                    CASE c.contype WHEN 'p' THEN 'PRIMARY KEY' ELSE 'UNIQUE' END, r.relname) END
              FROM pg_index i JOIN pg_class r ON r.oid = i.indexrelid
              LEFT JOIN pg_constraint c ON c.conindid = i.indexrelid AND c.contype IN ('p', 'u')
             WHERE i.indrelid = $1::oid ORDER BY i.indexrelid";
        let query = sqlx::query_as(statement).bind(self.live).bind(&self.live_schema).bind(name).bind(NEW_SCHEMA);
        let made: Vec<(String, Option<String>)> = query.fetch_all(&mut self.connection).await?;
        for (index, constraint) in made {
            run(&mut self.connection, index).await?;
            if let Some(constraint) = constraint {
                run(&mut self.connection, constraint).await?;
            }
        }
        Ok(())
    }

    /// Lets the planner know what is in the new table, before anybody reads it.
    pub(crate) async fn analyze(&mut self) -> Result<(), sqlx::Error> {
        run(&mut self.connection, format!("ANALYZE {NEW_SCHEMA}.{}", self.table.name)).await
    }

    /// How far the live tables are now.
    pub(crate) async fn frontier(&mut self) -> Result<Frontier, sqlx::Error> {
        let projection = self.table.projection;
        let mut snapshot = self.snapshot().await?;
        let frontier = frontier(&mut snapshot, projection, false).await?;
        snapshot.commit().await?;
        Ok(frontier)
    }

    /// A transaction that sees everything as of one moment.
    pub(crate) async fn snapshot(&mut self) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        self.connection.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ").await
    }

    /// A transaction that lasts once it is committed, and with it all before it.
    pub(crate) async fn lasting(&mut self) -> Result<Transaction<'_, Postgres>, sqlx::Error> {
        let mut transaction = self.connection.begin().await?;
        set(&mut transaction, "synchronous_commit", "on", true).await?;
        Ok(transaction)
    }

    /// Which processes read or write the live table just now, for an operator.
    pub(crate) async fn in_the_way(&mut self) -> Result<Vec<String>, sqlx::Error> {
        let statement =
            "SELECT DISTINCT format('process %s (%s, %s): %s', l.pid, nullif(a.application_name, ''), a.state,
                                        left(regexp_replace(a.query, '\\s+', ' ', 'g'), 80))
                           FROM pg_locks l JOIN pg_stat_activity a USING (pid)
                          WHERE l.relation = $1::oid AND l.granted AND l.pid <> pg_backend_pid() ORDER BY 1 LIMIT 5";
        sqlx::query_scalar(statement).bind(self.live).fetch_all(&mut self.connection).await
    }

    /// Where the live table is.
    pub(crate) fn live_schema(&self) -> &str {
        &self.live_schema
    }

    /// Where the live table goes when it is replaced.
    pub(crate) fn previous_name(&self) -> String {
        format!("{PREVIOUS_SCHEMA}.{}", self.table.name)
    }

    /// Drops the new table: it is not wanted.
    pub(crate) async fn abandon(&mut self) -> Result<(), sqlx::Error> {
        run(&mut self.connection, format!("DROP TABLE IF EXISTS {NEW_SCHEMA}.{}", self.table.name)).await
    }
}

/// The statements that give a table the rights that another has, its columns' too.
const RIGHTS: &str = "
SELECT format('GRANT %s ON %s TO %s%s', a.privilege_type, $2, coalesce(quote_ident(r.rolname), 'PUBLIC'),
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_class c CROSS JOIN aclexplode(c.relacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
 WHERE c.oid = $1::oid AND a.grantee <> c.relowner
UNION ALL
SELECT format('GRANT %s (%I) ON %s TO %s%s', a.privilege_type, t.attname, $2, coalesce(quote_ident(r.rolname), 'PUBLIC'),
              CASE WHEN a.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END)
  FROM pg_attribute t CROSS JOIN aclexplode(t.attacl) a LEFT JOIN pg_roles r ON r.oid = a.grantee
 WHERE t.attrelid = $1::oid AND NOT t.attisdropped
UNION ALL
SELECT format('ALTER TABLE %s OWNER TO %I', $2, pg_get_userbyid(c.relowner))
  FROM pg_class c WHERE c.oid = $1::oid AND pg_get_userbyid(c.relowner) <> current_user";

/// How far the live tables are, as this transaction sees it; `holding` keeps runners and replays from moving on until it ends.
pub(crate) async fn frontier(
    transaction: &mut PgConnection,
    projection: &str,
    holding: bool,
) -> Result<Frontier, sqlx::Error> {
    // In the order in which nobody else locks more than one of them against us.
    let statement = "SELECT partition, position FROM projection_checkpoints WHERE projection = $1 ORDER BY partition";
    let statement = if holding { format!("{statement} FOR UPDATE") } else { statement.to_owned() };
    let positions: Vec<(i32, Position)> =
        sqlx::query_as(AssertSqlSafe(statement)).bind(projection).fetch_all(&mut *transaction).await?;
    // A statement of its own, after the locks: so it sees what a replay that held them has unparked.
    let left_out = "SELECT position FROM parked_records WHERE projection = $1 AND wallet_id IS NOT NULL
                     UNION SELECT position FROM discarded_records WHERE projection = $1 AND wallet_id IS NOT NULL";
    let left_out: Vec<Position> = sqlx::query_scalar(left_out).bind(projection).fetch_all(transaction).await?;
    Ok(Frontier { positions: positions.into_iter().collect(), left_out: left_out.into_iter().collect() })
}

/// Holds the live and the new table's rows against each other.
pub(crate) async fn compare(
    transaction: &mut PgConnection,
    table: &RebuiltTable,
    live_schema: &str,
    compared: &Compared,
    shown_max: i64,
) -> Result<Comparison, sqlx::Error> {
    // Everything is read here: what is right for looking single rows up is not for this.
    for setting in ["enable_seqscan", "enable_hashjoin", "enable_mergejoin"] {
        set(transaction, setting, "on", true).await?;
    }
    let RebuiltTable { name, key, wallet, .. } = table;
    let (live, new, key) = (format!("{live_schema}.{name}"), format!("{NEW_SCHEMA}.{name}"), key.join(", "));
    let (joined, after, these) = match compared {
        Compared::Whole => (format!("FROM {live} l FULL JOIN {new} n USING ({key})"), None, None),
        Compared::Since(after, these) => {
            let written = "position > $1 OR position = ANY($2)";
            let keys =
                format!("SELECT {key} FROM {live} WHERE {written} UNION SELECT {key} FROM {new} WHERE {written}");
            let joined = format!("FROM ({keys}) AS w LEFT JOIN {live} l USING ({key}) LEFT JOIN {new} n USING ({key})");
            (joined, Some(*after), Some(these.as_slice()))
        }
    };
    let statement = format!("SELECT count(*), count(*) FILTER (WHERE l IS DISTINCT FROM n) {joined}");
    let mut counting = sqlx::query_as::<_, (i64, i64)>(AssertSqlSafe(statement));
    if after.is_some() {
        counting = counting.bind(after).bind(these);
    }
    let (rows, differing) = counting.fetch_one(&mut *transaction).await?;
    if differing == 0 {
        return Ok(Comparison { rows, differing, first: Vec::new() });
    }
    let statement = format!(
        "SELECT to_jsonb(l)::text, to_jsonb(n)::text {joined} WHERE l IS DISTINCT FROM n
          ORDER BY coalesce(l.{wallet}, n.{wallet}), coalesce(l.position, n.position) LIMIT {shown_max}"
    );
    let mut showing = sqlx::query_as::<_, (Option<String>, Option<String>)>(AssertSqlSafe(statement));
    if after.is_some() {
        showing = showing.bind(after).bind(these);
    }
    let first = showing.fetch_all(transaction).await?;
    let first = first.into_iter().map(|(live, rebuilt)| DifferingRow { live, rebuilt }).collect();
    Ok(Comparison { rows, differing, first })
}

/// Puts the new table into the live one's place, and the live one where it is kept. `false` where somebody reads it for longer than
/// everybody else can be made to wait: the transaction is then to be given up.
pub(crate) async fn swap(
    transaction: &mut PgConnection,
    table: &RebuiltTable,
    live_schema: &str,
    at: DateTime<Utc>,
) -> Result<bool, sqlx::Error> {
    let RebuiltTable { name, projection, .. } = table;
    let live = format!("{live_schema}.{name}");
    set(transaction, "lock_timeout", READERS_PATIENCE, true).await?;
    match run(transaction, format!("LOCK TABLE {live} IN ACCESS EXCLUSIVE MODE")).await {
        Err(error) if is_lock_timeout(&error) => return Ok(false),
        done => done?,
    }
    set(transaction, "lock_timeout", "0", true).await?;
    run(transaction, format!("CREATE SCHEMA IF NOT EXISTS {PREVIOUS_SCHEMA}")).await?;
    run(transaction, format!("ALTER TABLE {live} SET SCHEMA {PREVIOUS_SCHEMA}")).await?;
    run(transaction, format!("ALTER TABLE {NEW_SCHEMA}.{name} SET SCHEMA {live_schema}")).await?;
    let at = at.to_rfc3339_opts(SecondsFormat::Secs, true);
    let note = format!("replaced by a rebuild of {projection} on {at}");
    run(transaction, format!("COMMENT ON TABLE {PREVIOUS_SCHEMA}.{name} IS '{note}'")).await?;
    Ok(true)
}

async fn run(connection: &mut PgConnection, statement: String) -> Result<(), sqlx::Error> {
    sqlx::query(AssertSqlSafe(statement)).execute(connection).await.map(|_| ())
}

async fn set(connection: &mut PgConnection, name: &str, value: &str, is_local: bool) -> Result<(), sqlx::Error> {
    let statement = "SELECT set_config($1, $2, $3)";
    sqlx::query(statement).bind(name).bind(value).bind(is_local).execute(connection).await.map(|_| ())
}

fn is_lock_timeout(error: &sqlx::Error) -> bool {
    error.as_database_error().and_then(|database| database.code()).is_some_and(|code| code == "55P03")
}

/// Whether it is worth beginning the last step again.
pub(crate) fn is_in_passing(error: &sqlx::Error) -> bool {
    is_transient(error) && error.as_database_error().is_some()
}
