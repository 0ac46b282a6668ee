//! The statements. Each write is one statement or one transaction, so a cancelled call leaves nothing half done.

use std::sync::Arc;

use sqlx::{QueryBuilder, Row as _, Sqlite, SqlitePool, sqlite::SqliteRow};

use super::{Options, file};
use crate::{
    Kind, ListQuery, MAX_PAGE, MAX_PAYLOAD, NewObject, Page, PageKey, Precondition,
    REQUEST_MEMORY_MS, Remembered, RequestKey, StoreError, StoredObject, UnavailableCause,
    selector::Requirement,
};

/// The columns of [`read_object`].
const COLUMNS: &str = "seq, id, workspace, name, labels, version, created_at_ms, payload";

#[derive(Clone)]
pub(super) struct Database {
    read: SqlitePool,
    write: SqlitePool,
    file: Option<Arc<file::Identity>>,
    options: Options,
}

impl Database {
    pub(super) fn new(
        read: SqlitePool,
        write: SqlitePool,
        file: Option<Arc<file::Identity>>,
        options: Options,
    ) -> Self {
        Self { read, write, file, options }
    }

    pub(super) async fn close(&self) {
        self.read.close().await;
        self.write.close().await;
    }

    #[cfg(test)]
    pub(super) fn writer(&self) -> &SqlitePool {
        &self.write
    }

    /// Fails when the file is not the one that was opened.
    fn check_file(&self, operation: &'static str) -> Result<(), StoreError> {
        match &self.file {
            Some(file) if !file.still_there() => {
                Err(StoreError::unavailable(operation, UnavailableCause::FileGone))
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn put(
        &self,
        kind: Kind,
        object: NewObject,
        precondition: Precondition,
    ) -> Result<u64, StoreError> {
        if object.payload.len() > MAX_PAYLOAD {
            return Err(StoreError::PayloadTooLarge {
                kind,
                id: object.id,
                bytes: object.payload.len(),
            });
        }
        self.check_file("write")?;
        match precondition {
            Precondition::MustCreate => self.create(kind, object).await,
            Precondition::Version(expected) => self.replace(kind, object, expected).await,
        }
    }

    async fn create(&self, kind: Kind, object: NewObject) -> Result<u64, StoreError> {
        sqlx::query(
            "INSERT INTO objects (kind, id, workspace, name, labels, version, created_at_ms, payload)
             VALUES (?, ?, ?, ?, ?, 1, ?, ?)",
        )
        .bind(kind.as_str())
        .bind(&object.id)
        .bind(&object.workspace)
        .bind(&object.name)
        .bind(labels_text(&object))
        .bind(signed((self.options.now_ms)()))
        .bind(&object.payload)
        .execute(&self.write)
        .await
        .map_err(|e| taken_or_unavailable(kind, &object, e))?;
        Ok(1)
    }

    async fn replace(
        &self,
        kind: Kind,
        object: NewObject,
        expected: u64,
    ) -> Result<u64, StoreError> {
        let written = sqlx::query(
            "UPDATE objects SET workspace = ?, name = ?, labels = ?, payload = ?, version = version + 1
             WHERE kind = ? AND id = ? AND version = ?",
        )
        .bind(&object.workspace)
        .bind(&object.name)
        .bind(labels_text(&object))
        .bind(&object.payload)
        .bind(kind.as_str())
        .bind(&object.id)
        .bind(signed(expected))
        .execute(&self.write)
        .await
        .map_err(|e| taken_or_unavailable(kind, &object, e))?;
        if written.rows_affected() == 1 {
            return Ok(expected + 1);
        }
        let found = self.version_of(kind, &object.id).await?;
        Err(StoreError::Conflict { kind, id: object.id, expected, found })
    }

    async fn version_of(&self, kind: Kind, id: &str) -> Result<Option<u64>, StoreError> {
        let version: Option<i64> =
            sqlx::query_scalar("SELECT version FROM objects WHERE kind = ? AND id = ?")
                .bind(kind.as_str())
                .bind(id)
                .fetch_optional(&self.write)
                .await
                .map_err(|e| StoreError::unavailable("read", e))?;
        Ok(version.map(unsigned))
    }

    pub(super) async fn get(
        &self,
        kind: Kind,
        id: String,
    ) -> Result<Option<StoredObject>, StoreError> {
        let mut query = select(kind);
        query.push(" AND id = ").push_bind(id);
        self.first(query).await
    }

    pub(super) async fn get_by_name(
        &self,
        kind: Kind,
        workspace: String,
        name: String,
    ) -> Result<Option<StoredObject>, StoreError> {
        let mut query = select(kind);
        query.push(" AND workspace = ").push_bind(workspace).push(" AND name = ").push_bind(name);
        self.first(query).await
    }

    async fn first(
        &self,
        mut query: QueryBuilder<Sqlite>,
    ) -> Result<Option<StoredObject>, StoreError> {
        let row = query
            .build()
            .fetch_optional(&self.read)
            .await
            .map_err(|e| StoreError::unavailable("read", e))?;
        row.map(|row| read_object(&row).map(|(_, object)| object)).transpose()
    }

    pub(super) async fn list(&self, kind: Kind, query: ListQuery) -> Result<Page, StoreError> {
        let limit = query.limit.clamp(1, MAX_PAGE);
        let mut statement = select(kind);
        if let Some(key) = query.after {
            let position = key.position_in(kind, &query).ok_or(StoreError::ForeignPageKey)?;
            statement.push(" AND seq > ").push_bind(signed(position));
        }
        if let Some(workspace) = &query.workspace {
            statement.push(" AND workspace = ").push_bind(workspace.clone());
        }
        for requirement in query.labels.requirements() {
            push_requirement(&mut statement, requirement);
        }
        // One more than asked for tells whether there is a next page.
        statement.push(" ORDER BY seq LIMIT ").push_bind(i64::from(limit) + 1);
        let rows = statement
            .build()
            .fetch_all(&self.read)
            .await
            .map_err(|e| StoreError::unavailable("list", e))?;
        let more = rows.len() > limit as usize;
        let mut objects = Vec::with_capacity(rows.len());
        let mut last = 0;
        for row in rows.iter().take(limit as usize) {
            let (seq, object) = read_object(row)?;
            last = seq;
            objects.push(object);
        }
        Ok(Page { objects, next: more.then(|| PageKey::new(last, kind, &query)) })
    }

    pub(super) async fn delete(
        &self,
        kind: Kind,
        id: String,
        precondition: Option<u64>,
    ) -> Result<bool, StoreError> {
        self.check_file("delete")?;
        let mut query = QueryBuilder::new("DELETE FROM objects WHERE kind = ");
        query.push_bind(kind.as_str()).push(" AND id = ").push_bind(id.clone());
        if let Some(version) = precondition {
            query.push(" AND version = ").push_bind(signed(version));
        }
        let deleted = query
            .build()
            .execute(&self.write)
            .await
            .map_err(|e| StoreError::unavailable("delete", e))?;
        if deleted.rows_affected() > 0 {
            return Ok(true);
        }
        match (precondition, self.version_of(kind, &id).await?) {
            (Some(expected), Some(found)) => {
                Err(StoreError::Conflict { kind, id, expected, found: Some(found) })
            }
            _ => Ok(false),
        }
    }

    pub(super) async fn remember(
        &self,
        key: RequestKey,
        fingerprint: [u8; 32],
        result_id: String,
    ) -> Result<Remembered, StoreError> {
        self.check_file("remember a request")?;
        self.remember_in_transaction(&key, fingerprint, result_id).await.map_err(|e| match e {
            Failed::Database(e) => StoreError::unavailable("remember a request", e),
            Failed::Row(e) => {
                StoreError::corrupt(format!("remembered request {:?}", key.request_id), e)
            }
        })
    }

    async fn remember_in_transaction(
        &self,
        key: &RequestKey,
        fingerprint: [u8; 32],
        result_id: String,
    ) -> Result<Remembered, Failed> {
        let now_ms = (self.options.now_ms)();
        let mut transaction = self.write.begin_with("BEGIN IMMEDIATE").await?;
        sqlx::query("DELETE FROM requests WHERE created_at_ms <= ?")
            .bind(oldest_kept(now_ms))
            .execute(&mut *transaction)
            .await?;
        let inserted = sqlx::query(
            "INSERT INTO requests (subject, method, workspace, request_id, fingerprint, result_id, created_at_ms)
             VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
        )
        .bind(&key.subject)
        .bind(&key.method)
        .bind(&key.workspace)
        .bind(&key.request_id)
        .bind(fingerprint.as_slice())
        .bind(result_id)
        .bind(signed(now_ms))
        .execute(&mut *transaction)
        .await?;
        if inserted.rows_affected() == 1 {
            sqlx::query("DELETE FROM requests WHERE seq <= (SELECT MAX(seq) FROM requests) - ?")
                .bind(i64::from(self.options.max_requests))
                .execute(&mut *transaction)
                .await?;
            transaction.commit().await?;
            return Ok(Remembered::New);
        }
        let row = sqlx::query(
            "SELECT fingerprint, result_id FROM requests
             WHERE subject = ? AND method = ? AND workspace = ? AND request_id = ?",
        )
        .bind(&key.subject)
        .bind(&key.method)
        .bind(&key.workspace)
        .bind(&key.request_id)
        .fetch_one(&mut *transaction)
        .await?;
        transaction.commit().await?;
        let known: Vec<u8> = row.try_get(0).map_err(Failed::Row)?;
        if known != fingerprint {
            return Ok(Remembered::Different);
        }
        Ok(Remembered::Same { result_id: row.try_get(1).map_err(Failed::Row)? })
    }

    pub(super) async fn forget(&self, key: RequestKey) -> Result<(), StoreError> {
        self.check_file("forget a request")?;
        sqlx::query(
            "DELETE FROM requests WHERE subject = ? AND method = ? AND workspace = ? AND request_id = ?",
        )
        .bind(&key.subject)
        .bind(&key.method)
        .bind(&key.workspace)
        .bind(&key.request_id)
        .execute(&self.write)
        .await
        .map_err(|e| StoreError::unavailable("forget a request", e))?;
        Ok(())
    }

    pub(super) async fn probe(&self) -> Result<(), StoreError> {
        self.check_file("probe")?;
        sqlx::query("SELECT 1 FROM objects LIMIT 1")
            .fetch_optional(&self.read)
            .await
            .map_err(|e| StoreError::unavailable("probe", e))?;
        Ok(())
    }

    pub(super) async fn reap(&self, now_ms: u64) -> Result<u64, StoreError> {
        self.check_file("reap")?;
        let reaped = sqlx::query("DELETE FROM requests WHERE created_at_ms <= ?")
            .bind(oldest_kept(now_ms))
            .execute(&self.write)
            .await
            .map_err(|e| StoreError::unavailable("reap", e))?;
        Ok(reaped.rows_affected())
    }
}

/// Why a transaction failed: the database did, or a row is not what was written.
enum Failed {
    Database(sqlx::Error),
    Row(sqlx::Error),
}

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

fn select(kind: Kind) -> QueryBuilder<Sqlite> {
    let mut query = QueryBuilder::new(format!("SELECT {COLUMNS} FROM objects WHERE kind = "));
    query.push_bind(kind.as_str());
    query
}

/// One condition of a selector; means what [`crate::LabelSelector::matches`] means.
fn push_requirement(query: &mut QueryBuilder<Sqlite>, requirement: &Requirement) {
    let (negated, key, values) = match requirement {
        Requirement::In(key, values) => (false, key, values.as_slice()),
        Requirement::NotIn(key, values) => (true, key, values.as_slice()),
        Requirement::Exists(key) => (false, key, [].as_slice()),
        Requirement::Missing(key) => (true, key, [].as_slice()),
    };
    query.push(if negated { " AND NOT EXISTS (" } else { " AND EXISTS (" });
    query
        .push("SELECT 1 FROM json_each(objects.labels) AS label WHERE label.key = ")
        .push_bind(key.clone());
    if !values.is_empty() {
        query.push(" AND label.value IN (");
        let mut list = query.separated(", ");
        for value in values {
            list.push_bind(value.clone());
        }
        query.push(")");
    }
    query.push(")");
}

fn read_object(row: &SqliteRow) -> Result<(u64, StoredObject), StoreError> {
    let id: String = row.try_get("id").map_err(|e| StoreError::corrupt("column id", e))?;
    let fault = |column: &str, e| StoreError::corrupt(format!("column {column} of object {id}"), e);
    let labels: String = row.try_get("labels").map_err(|e| fault("labels", e))?;
    let object = StoredObject {
        workspace: row.try_get("workspace").map_err(|e| fault("workspace", e))?,
        name: row.try_get("name").map_err(|e| fault("name", e))?,
        labels: serde_json::from_str(&labels)
            .map_err(|e| fault("labels", sqlx::Error::decode(e)))?,
        version: unsigned(row.try_get("version").map_err(|e| fault("version", e))?),
        created_at_ms: unsigned(
            row.try_get("created_at_ms").map_err(|e| fault("created_at_ms", e))?,
        ),
        payload: row.try_get("payload").map_err(|e| fault("payload", e))?,
        id: id.clone(),
    };
    let seq = unsigned(row.try_get("seq").map_err(|e| fault("seq", e))?);
    Ok((seq, object))
}

fn labels_text(object: &NewObject) -> String {
    serde_json::to_string(&object.labels).expect("a map of texts is JSON")
}

fn taken_or_unavailable(kind: Kind, object: &NewObject, error: sqlx::Error) -> StoreError {
    match &error {
        sqlx::Error::Database(e) if e.is_unique_violation() => {
            StoreError::AlreadyExists { kind, id: object.id.clone(), name: object.name.clone() }
        }
        _ => StoreError::unavailable("write", error),
    }
}

/// Requests of this time (milliseconds) and older are forgotten.
fn oldest_kept(now_ms: u64) -> i64 {
    signed(now_ms.saturating_sub(REQUEST_MEMORY_MS))
}

/// Numbers in SQLite are signed; none of ours comes near the edge.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
