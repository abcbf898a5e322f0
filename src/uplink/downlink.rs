//! [`Downlink`]: what the centre wants of this device, page by page into the ledger; and the recipes out of it.
//!
//! A page is read in one central transaction that sets the site for itself alone (a pooler may give the next one another
//! session), and taken into the ledger in one transaction with the cursor: killed in between, it is read again and changes
//! nothing. The numbers that the cursors follow become visible in their order (migration V10 says why), so nothing that
//! commits late is passed over.
//!
//! A recipe is put on disk by its digest and proved on this machine before the station takes it up, a fit before it is put
//! beside its index; one that fails is noted with its error and the one before it stays. What became of them is told to
//! the centre (`reports.rs`). Runs on the uplink's thread, after the deliveries: verdicts come
//! first. Overload: pages are bounded in rows and bytes. A centre without these tables is said once, and delivered to.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use tracing::{error, info, warn};
use uuid::Uuid;

use super::central::Central;
use super::{UplinkError, reports};
use crate::clock::Stopwatch;
use crate::failpoint;
use crate::ledger::{
    CentralFit, CentralPage, CentralRow, CentralTable, FitState, Ledger, LedgerReader, ProvisionNote, generation_name,
    place_recipe, prune_recipes,
};
use crate::limits::{DOWNLINK_PAGE_BYTES_MAX, DOWNLINK_PAGE_ROWS_MAX};
use crate::types::Digest;

/// How long central may take over one page.
const PAGE_TIMEOUT: Duration = Duration::from_secs(60);
/// How often a recipe that could not be used is tried again: its model may have been copied here since.
const PROVED_AGAIN: Duration = Duration::from_secs(60);

const OLDER_CENTRE: &str = "the centre has no tables for some of what flows down; the rest and deliveries go on (`loupe db migrate` there adds them)";

/// Says whether a recipe (its text) can run on this machine, with what is wrong.
pub type Prove = Arc<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// What is to be done with a fit of the centre. `ours`: digest of the centre's fit that is in use.
#[derive(Debug, Clone, Copy)]
pub enum FitOrder<'a> {
    /// Put it in use where its generation lies.
    Place { fit: &'a CentralFit, ours: Option<Digest> },
    /// Take it out of use.
    GiveBack { generation_sha256: Digest, ours: Digest },
}

/// Carries out a [`FitOrder`] on this machine's indexes, or says what is wrong.
pub type KeepFit = Arc<dyn Fn(FitOrder<'_>) -> Result<(), String> + Send + Sync>;

/// What is told of a station's recipe, for who shows it or takes it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RecipeNews {
    /// Proved: the station is to run by it.
    Taken { station: String },
    /// It cannot be used here; the one before it stays.
    Refused { station: String, recipe: String, fault: String },
}

/// Hears [`RecipeNews`], after they were committed.
pub type HearRecipe = Arc<dyn Fn(RecipeNews) + Send + Sync>;

/// What is to come down.
#[derive(Clone)]
pub struct DownlinkConfig {
    /// Pause between two looks.
    pub interval: Duration,
    /// Stations whose recipe comes from the centre.
    pub stations: Vec<String>,
    pub prove: Prove,
    pub keep_fit: KeepFit,
    pub hear: HearRecipe,
}

impl std::fmt::Debug for DownlinkConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DownlinkConfig").field("stations", &self.stations).finish_non_exhaustive()
    }
}

/// What a pull brought.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Pulled {
    /// Rows read.
    pub rows: usize,
    /// Entries in use after it.
    pub applied: usize,
    pub withdrawn: usize,
    /// Of the rows read, those of no use here.
    pub set_aside: usize,
    /// Whether the centre lacks tables of what flows down.
    pub is_older: bool,
}

/// The state of pulling, between two looks.
#[derive(Debug)]
pub struct Downlink {
    config: DownlinkConfig,
    since_pull: Option<Stopwatch>,
    /// What was said last: a fault that lasts is said once.
    said: String,
    /// Recipes that could not be used, and since when they have not been tried.
    refused: Vec<(String, Digest, Stopwatch)>,
    /// Fits that were looked after, and since when not again; by generation.
    fits: Vec<(Digest, Digest, Stopwatch)>,
    has_retried: bool,
    has_said_untold: bool,
}

impl Downlink {
    #[must_use]
    pub fn new(config: DownlinkConfig) -> Self {
        let said = String::new();
        let (refused, fits) = (Vec::new(), Vec::new());
        Self { config, since_pull: None, said, refused, fits, has_retried: false, has_said_untold: false }
    }

    /// Pull when it is time; then have the stations' recipes follow.
    ///
    /// # Errors
    /// When the connection or the ledger fails, so that there must be another. What the server refuses is said and noted.
    pub(super) async fn look(
        &mut self,
        central: &mut Central,
        ledger: &Ledger,
        reader: &LedgerReader,
        site_id: Uuid,
    ) -> Result<(), UplinkError> {
        if self.since_pull.as_ref().is_some_and(|since| since.elapsed() < self.config.interval) {
            return Ok(());
        }
        if !self.has_retried {
            ledger.retry_central()?;
            self.has_retried = true;
        }
        let outcome = pull(central, ledger, reader, site_id).await;
        self.since_pull = Some(Stopwatch::start());
        let fault = match outcome {
            Ok(pulled) => {
                if pulled.rows > 0 {
                    let Pulled { rows, applied, withdrawn, set_aside, .. } = pulled;
                    info!(rows, applied, withdrawn, set_aside, "the centre's changes were taken in");
                }
                if pulled.set_aside > 0 {
                    warn!(
                        rows = pulled.set_aside,
                        "rows of the centre are of no use here; see `loupe provisioning status`"
                    );
                }
                pulled.is_older.then(|| OLDER_CENTRE.to_owned())
            }
            Err(error) if is_refusal(&error) => Some(error.to_string()),
            Err(error) => return Err(error),
        };
        if let Some(fault) = fault.as_ref().filter(|fault| **fault != self.said) {
            warn!(fault, "nothing was pulled");
        }
        ledger.note_provisioning(ProvisionNote::Pulled { error: fault.clone() })?;
        self.said = fault.unwrap_or_default();
        self.settle_recipes(ledger, reader)?;
        self.settle_fits(ledger, reader)?;
        match reports::send(central, ledger, reader, site_id).await {
            Err(error) if is_refusal(&error) => {
                if !std::mem::replace(&mut self.has_said_untold, true) {
                    warn!(%error, "the centre does not take reports of what became of its recipes and fits");
                }
                Ok(())
            }
            done => done,
        }
    }

    /// Bring each station's recipe to what the centre wants, as far as it can run here.
    fn settle_recipes(&mut self, ledger: &Ledger, reader: &LedgerReader) -> Result<(), UplinkError> {
        let noted = reader.station_recipes()?;
        let mut has_taken = false;
        for station in self.config.stations.clone() {
            let Some(desired) = reader.desired_recipe(&station)? else { continue };
            let sha256 = desired.recipe.sha256;
            let known = noted.iter().find(|known| known.station == station);
            let is_taken = known.is_some_and(|known| known.taken_sha256 == Some(sha256));
            let was_refused = known.is_some_and(|known| known.refused_sha256.is_some());
            let is_fresh = |(name, refused, since): &(String, Digest, Stopwatch)| {
                *name == station && *refused == sha256 && since.elapsed() < PROVED_AGAIN
            };
            if (is_taken && !was_refused) || self.refused.iter().any(is_fresh) {
                continue;
            }
            self.refused.retain(|(name, ..)| *name != station);
            let placed = place_recipe(ledger.state_dir(), &desired.recipe.body).map_err(|error| error.to_string());
            match placed.and_then(|_| (self.config.prove)(&desired.recipe.body)) {
                Ok(()) => {
                    failpoint::hit("downlink.recipe.proved");
                    ledger.note_provisioning(ProvisionNote::Taken { station: station.clone(), sha256 })?;
                    failpoint::hit("downlink.recipe.taken");
                    has_taken = true;
                    info!(
                        station, recipe = desired.recipe.name, version = desired.recipe.version_label,
                        sha256 = %sha256.short(), by = desired.assigned_by,
                        "a recipe of the centre is proved here"
                    );
                    (self.config.hear)(RecipeNews::Taken { station });
                }
                Err(fault) => {
                    let note = ProvisionNote::Refused { station: station.clone(), sha256, error: fault.clone() };
                    let recipe = format!("{} {}", desired.recipe.name, desired.recipe.version_label);
                    if known.and_then(|known| known.refused_error.as_ref()) != Some(&fault) {
                        error!(
                            station, recipe, sha256 = %sha256.short(), fault,
                            "a recipe of the centre cannot be used here; the one before it stays"
                        );
                    }
                    ledger.note_provisioning(note)?;
                    self.refused.push((station.clone(), sha256, Stopwatch::start()));
                    (self.config.hear)(RecipeNews::Refused { station, recipe, fault });
                }
            }
        }
        if has_taken {
            prune_recipes(ledger.state_dir(), reader)?;
        }
        Ok(())
    }

    /// Have the wanted fits lie beside their indexes; take back those that are wanted no more.
    fn settle_fits(&mut self, ledger: &Ledger, reader: &LedgerReader) -> Result<(), UplinkError> {
        let (wanted, noted) = (reader.desired_fits()?, reader.fit_states()?);
        for fit in &wanted {
            let is_fresh = |(generation, sha256, since): &(Digest, Digest, Stopwatch)| {
                (*generation, *sha256) == (fit.generation_sha256, fit.sha256) && since.elapsed() < PROVED_AGAIN
            };
            if self.fits.iter().any(is_fresh) {
                continue;
            }
            self.fits.retain(|(generation, ..)| *generation != fit.generation_sha256);
            let known = noted.iter().find(|known| known.generation_sha256 == fit.generation_sha256);
            self.settle_fit(ledger, fit, known)?;
            self.fits.push((fit.generation_sha256, fit.sha256, Stopwatch::start()));
        }
        for known in &noted {
            let generation_sha256 = known.generation_sha256;
            if wanted.iter().any(|fit| fit.generation_sha256 == generation_sha256) {
                continue;
            }
            self.fits.retain(|(generation, ..)| *generation != generation_sha256);
            if let Some(ours) = known.taken_sha256 {
                if let Err(fault) = (self.config.keep_fit)(FitOrder::GiveBack { generation_sha256, ours }) {
                    warn!(generation = known.generation_name(), fault, "a withdrawn fit could not be taken out of use");
                    continue;
                }
                failpoint::hit("downlink.fit.back");
                info!(generation = known.generation_name(), "the centre took its fit back");
            }
            ledger.note_provisioning(ProvisionNote::FitGone { generation_sha256 })?;
        }
        Ok(())
    }

    fn settle_fit(&self, ledger: &Ledger, fit: &CentralFit, known: Option<&FitState>) -> Result<(), UplinkError> {
        let CentralFit { generation_sha256, sha256, .. } = *fit;
        let generation = generation_name(generation_sha256);
        let ours = known.and_then(|known| known.taken_sha256);
        match (self.config.keep_fit)(FitOrder::Place { fit, ours }) {
            Ok(()) => {
                failpoint::hit("downlink.fit.placed");
                if ours != Some(sha256) || known.is_some_and(|known| known.refused_sha256.is_some()) {
                    ledger.note_provisioning(ProvisionNote::FitTaken { generation_sha256, sha256 })?;
                    failpoint::hit("downlink.fit.taken");
                    info!(generation, sha256 = %sha256.short(), "a fit of the centre is in use");
                }
            }
            Err(error) => {
                if known.and_then(|known| known.refused_error.as_ref()) != Some(&error) {
                    error!(
                        generation, sha256 = %sha256.short(), fault = error,
                        "a fit of the centre cannot be used here; what was in use stays"
                    );
                }
                ledger.note_provisioning(ProvisionNote::FitRefused { generation_sha256, sha256, error })?;
            }
        }
        Ok(())
    }
}

/// Whether the server answered, and said no: the connection is of use all the same.
fn is_refusal(error: &UplinkError) -> bool {
    matches!(error, UplinkError::Statement { source, .. } if source.as_db_error().is_some())
        || matches!(error, UplinkError::Ledger(error) if error.is_about_the_row())
}

/// Take in everything that changed at the centre since the last time.
///
/// # Errors
/// When the server or the ledger fails; what was taken in until then stays.
pub(super) async fn pull(
    central: &mut Central,
    ledger: &Ledger,
    reader: &LedgerReader,
    site_id: Uuid,
) -> Result<Pulled, UplinkError> {
    let mut pulled = Pulled::default();
    let heads = heads(central, site_id).await?;
    pulled.is_older = heads.len() < CentralTable::ALL.len();
    for (table, head) in heads {
        let mut after = reader.central_cursor(table)?;
        if head < after {
            warn!(table = table.name(), head, cursor = after, "the centre is older than what it sent: reading it anew");
            ledger.read_central_anew(table)?;
            after = 0;
        }
        while after < head {
            let rows = page(central, site_id, table, after).await?;
            failpoint::hit("downlink.page.read");
            let Some(last) = rows.last().map(|row| row.change_seq) else { break };
            let done = ledger.take_in(CentralPage { table, after, rows })?;
            failpoint::hit("downlink.page.taken");
            pulled.rows += done.rows;
            pulled.applied += done.applied;
            pulled.withdrawn += done.withdrawn;
            pulled.set_aside += done.set_aside;
            after = last;
        }
    }
    Ok(pulled)
}

/// The highest number that this site may read, of each table that the centre has.
async fn heads(central: &mut Central, site_id: Uuid) -> Result<Vec<(CentralTable, i64)>, UplinkError> {
    let names: Vec<&str> = CentralTable::ALL.iter().map(|table| table.name()).collect();
    let sql = "SELECT to_regclass('loupe.' || quote_ident(name)) IS NOT NULL
         FROM unnest($1::text[]) WITH ORDINALITY AS t (name, number) ORDER BY number";
    let found = query(central, site_id, sql, &[(&names, Type::TEXT_ARRAY)]).await?;
    let tables: Vec<CentralTable> =
        CentralTable::ALL.into_iter().zip(&found).filter(|(_, row)| row.get(0)).map(|(table, _)| table).collect();
    if tables.is_empty() {
        return Ok(Vec::new());
    }
    let head = |table: &CentralTable| {
        let name = table.name();
        format!("coalesce((SELECT max(t.change_seq) FROM loupe.{name} t WHERE t.site_id IS NULL OR t.site_id = $1), 0)")
    };
    let sql = format!("SELECT {}", tables.iter().map(head).collect::<Vec<_>>().join(", "));
    let rows = query(central, site_id, &sql, &[(&site_id, Type::UUID)]).await?;
    let numbers = |row: &tokio_postgres::Row| (0..tables.len()).map(|index| row.get(index)).collect();
    let numbers: Vec<i64> = rows.first().map_or_else(Vec::new, numbers);
    Ok(tables.into_iter().zip(numbers).collect())
}

/// The next rows of `table` in the order of their changes: at least one, where there is one.
async fn page(
    central: &mut Central,
    site_id: Uuid,
    table: CentralTable,
    after: i64,
) -> Result<Vec<CentralRow>, UplinkError> {
    let (name, body) = (table.name(), body(table));
    let sql = format!(
        "SELECT id, change_seq, is_active, is_site, format, CASE WHEN bytes <= $4 THEN body END FROM (
            SELECT *, octet_length(body)::bigint AS bytes,
                sum(octet_length(body)) OVER (ORDER BY change_seq) AS total,
                row_number() OVER (ORDER BY change_seq) AS number
            FROM (SELECT t.id, t.change_seq, t.is_active, t.site_id IS NOT NULL AS is_site, t.format,
                    CASE WHEN t.is_active THEN ({body})::text ELSE 'null' END AS body
                FROM loupe.{name} t
                WHERE t.change_seq > $2 AND (t.site_id IS NULL OR t.site_id = $1)
                ORDER BY t.change_seq LIMIT $3) page
         ) sized WHERE total <= $4 OR number = 1 ORDER BY change_seq"
    );
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
        (&site_id, Type::UUID),
        (&after, Type::INT8),
        (&DOWNLINK_PAGE_ROWS_MAX, Type::INT8),
        (&DOWNLINK_PAGE_BYTES_MAX, Type::INT8),
    ];
    let rows = query(central, site_id, &sql, &params).await?;
    Ok(rows
        .iter()
        .map(|row| CentralRow {
            id: row.get(0),
            change_seq: row.get(1),
            is_active: row.get(2),
            is_site: row.get(3),
            format: row.get(4),
            body: row.get(5),
        })
        .collect())
}

/// JSON of a row `t`, in the shape of this program's types. Columns are named, so that later ones disturb nobody.
fn body(table: CentralTable) -> &'static str {
    match table {
        CentralTable::Categories => {
            "jsonb_build_object('code', t.code, 'name_en', t.name_en, 'name_ko', t.name_ko, 'parent_code', t.parent_code)"
        }
        CentralTable::Colors => {
            "jsonb_build_object('color_id', t.color_id, 'name', t.name, 'name_ko', t.name_ko, 'rgb', t.rgb,
                'is_transparent', t.is_transparent)"
        }
        CentralTable::Parts => {
            "jsonb_build_object('part_number', t.part_number, 'name_en', t.name_en, 'name_ko', t.name_ko,
                'category_code', t.category_code, 'length_mm', t.length_mm, 'width_mm', t.width_mm,
                'height_mm', t.height_mm, 'weight_g', t.weight_g, 'confusion_group', t.confusion_group)"
        }
        CentralTable::Relations => {
            "jsonb_build_object('part_number', t.part_number, 'related_part_number', t.related_part_number,
                'similarity', t.similarity)"
        }
        CentralTable::Policies => {
            "jsonb_build_object('subject_kind', t.subject_kind, 'subject', t.subject,
                'security_level', t.security_level, 'allowed_groups', t.allowed_groups)"
        }
        CentralTable::Kits => {
            "jsonb_build_object('kit_code', t.kit_code, 'name', t.name, 'lines', (
                SELECT coalesce(jsonb_agg(jsonb_build_object('part_number', l.part_number, 'color_id', l.color_id,
                    'quantity', l.quantity, 'is_spare', l.is_spare, 'alternate_group', l.alternate_group)
                    ORDER BY l.ordinal), '[]')
                FROM loupe.kit_parts l WHERE l.kit_id = t.id))"
        }
        CentralTable::Recipes => {
            "jsonb_build_object('sha256', encode(t.sha256, 'hex'), 'name', t.name, 'version_label', t.version_label,
                'body', t.body)"
        }
        CentralTable::Assignments => {
            "jsonb_build_object('station', t.station, 'assigned_by', t.created_by, 'assigned_at', t.created_at,
                'recipe_sha256', (SELECT encode(r.sha256, 'hex') FROM loupe.recipes r WHERE r.id = t.recipe_id))"
        }
        CentralTable::Fits => {
            "jsonb_build_object('generation_sha256', encode(t.generation_sha256, 'hex'),
                'sha256', encode(t.sha256, 'hex'), 'body', t.body)"
        }
    }
}

type Parameter<'a> = (&'a (dyn tokio_postgres::types::ToSql + Sync), Type);

/// One statement in a read-only transaction of its own, as this site.
pub(super) async fn query(
    central: &mut Central,
    site_id: Uuid,
    sql: &str,
    params: &[Parameter<'_>],
) -> Result<Vec<tokio_postgres::Row>, UplinkError> {
    let server = central.server.clone();
    let work = async {
        let on_statement = UplinkError::statement(&server);
        let transaction = central.client.build_transaction().read_only(true).start().await.map_err(&on_statement)?;
        as_site(&transaction, site_id).await.map_err(&on_statement)?;
        let rows = transaction.query_typed(sql, params).await.map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        Ok(rows)
    };
    let timed_out = UplinkError::Timeout { server: server.clone(), seconds: PAGE_TIMEOUT.as_secs() };
    tokio::time::timeout(PAGE_TIMEOUT, work).await.map_err(|_| timed_out)?
}

pub(super) async fn as_site(transaction: &Transaction<'_>, site_id: Uuid) -> Result<(), tokio_postgres::Error> {
    let site_id = site_id.to_string();
    let set = "SELECT set_config('loupe.site_id', $1, true)";
    transaction.query_typed(set, &[(&site_id, Type::TEXT)]).await.map(drop)
}
