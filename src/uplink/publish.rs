//! Publishing: what sites are to use, written at the centre by those who may.
//!
//! One call is one transaction: all of it or nothing. A row changes, and travels, only when what it says does. Nothing is
//! deleted: a withdrawn row stays and tells the devices so.

use serde::Serialize;
use serde_json::{Value, json};
use tokio_postgres::Transaction;
use tokio_postgres::types::Type;
use uuid::Uuid;

use super::UplinkError;
use super::central::Central;
use crate::types::{Catalogue, Digest};

/// A recipe to publish, checked.
#[derive(Debug, Clone)]
pub struct NewRecipe {
    pub name: String,
    pub version_label: String,
    /// TOML.
    pub body: String,
    /// `None`: every station of the site that takes its recipe from the centre.
    pub station: Option<String>,
    /// Why.
    pub note: Option<String>,
}

/// One published row.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Published {
    /// `part`, `kit`, `recipe`, …
    pub kind: String,
    /// Part number, kit code, station; `*`: every station.
    pub key: String,
    /// Code of the site; `None`: every site.
    pub site: Option<String>,
    /// Name for people; of a recipe with its version and digest.
    pub name: String,
    pub change_seq: i64,
    /// RFC 3339.
    pub updated_at: String,
    pub updated_by: String,
}

/// What a device said last of a recipe or fit that the centre wants of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SiteState {
    /// Code of the site.
    pub site: String,
    pub device_id: Uuid,
    /// `recipe` or `fit`.
    pub subject_kind: String,
    /// Station, or index generation, by name.
    pub subject: String,
    /// `serving`, `refused` or `withdrawn`.
    pub outcome: String,
    pub sha256: String,
    /// What served before; where it was refused, what goes on serving.
    pub previous_sha256: Option<String>,
    /// Why.
    pub detail: Option<String>,
    /// What is published for it now.
    pub wanted_sha256: Option<String>,
    pub is_as_wanted: bool,
    /// RFC 3339.
    pub occurred_at: String,
}

/// A kind of published row: how people call it, its table, its key, its name.
struct Kind {
    name: &'static str,
    table: &'static str,
    key: &'static str,
    label: &'static str,
}

const KINDS: [Kind; 8] = [
    Kind { name: "category", table: "categories", key: "t.code", label: "t.name_en" },
    Kind { name: "color", table: "colors", key: "t.color_id::text", label: "t.name" },
    Kind { name: "part", table: "parts", key: "t.part_number", label: "t.name_en" },
    Kind {
        name: "pair",
        table: "part_relations",
        key: "t.part_number || '~' || t.related_part_number",
        label: "'similarity ' || t.similarity",
    },
    Kind {
        name: "policy",
        table: "access_policies",
        key: "t.subject_kind || ':' || t.subject",
        label: "t.security_level",
    },
    Kind { name: "kit", table: "kits", key: "t.kit_code", label: "t.name" },
    Kind {
        name: "recipe",
        table: "recipe_assignments",
        key: "coalesce(t.station, '*')",
        label: "(SELECT r.name || ' ' || r.version_label || ' ' || left(encode(r.sha256, 'hex'), 12)
            FROM loupe.recipes r WHERE r.id = t.recipe_id)",
    },
    Kind {
        name: "fit",
        table: "fits",
        key: "'gen-' || left(encode(t.generation_sha256, 'hex'), 12)",
        label: "'fit ' || left(encode(t.sha256, 'hex'), 12)",
    },
];

/// The kinds that [`Central::withdraw`] knows.
pub const PUBLISHED_KINDS: [&str; 8] = ["category", "color", "part", "pair", "policy", "kit", "recipe", "fit"];

/// An INSERT … ON CONFLICT DO UPDATE of the rows in `$1` (JSON) for the site `$2`, where they differ.
struct Upsert {
    table: &'static str,
    /// Columns with their types, keys first.
    columns: &'static [(&'static str, &'static str)],
    keys: usize,
}

const UPSERTS: [Upsert; 6] = [
    Upsert {
        table: "categories",
        columns: &[("code", "text"), ("name_en", "text"), ("name_ko", "text"), ("parent_code", "text")],
        keys: 1,
    },
    Upsert {
        table: "colors",
        columns: &[
            ("color_id", "int"),
            ("name", "text"),
            ("name_ko", "text"),
            ("rgb", "text"),
            ("is_transparent", "boolean"),
        ],
        keys: 1,
    },
    Upsert {
        table: "parts",
        columns: &[
            ("part_number", "text"),
            ("name_en", "text"),
            ("name_ko", "text"),
            ("category_code", "text"),
            ("length_mm", "double precision"),
            ("width_mm", "double precision"),
            ("height_mm", "double precision"),
            ("weight_g", "double precision"),
            ("confusion_group", "text"),
        ],
        keys: 1,
    },
    Upsert {
        table: "part_relations",
        columns: &[("part_number", "text"), ("related_part_number", "text"), ("similarity", "double precision")],
        keys: 2,
    },
    Upsert {
        table: "access_policies",
        columns: &[
            ("subject_kind", "text"),
            ("subject", "text"),
            ("security_level", "text"),
            ("allowed_groups", "text[]"),
        ],
        keys: 2,
    },
    Upsert { table: "kits", columns: &[("kit_code", "text"), ("name", "text")], keys: 1 },
];

/// The site of rows for every site, in the unique indexes.
const EVERY_SITE: &str = "'00000000-0000-0000-0000-000000000000'::uuid";

impl Upsert {
    fn sql(&self) -> String {
        let table = self.table;
        let names = |prefix: &str, from: usize| {
            let names = self.columns.iter().skip(from).map(|(name, _)| format!("{prefix}{name}"));
            names.collect::<Vec<_>>().join(", ")
        };
        let typed = self.columns.iter().map(|(name, kind)| format!("{name} {kind}")).collect::<Vec<_>>().join(", ");
        let keys = self.columns.iter().take(self.keys).map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        let set = self
            .columns
            .iter()
            .skip(self.keys)
            .map(|(name, _)| format!("{name} = excluded.{name}"))
            .collect::<Vec<_>>()
            .join(", ");
        format!(
            "INSERT INTO loupe.{table} AS t (site_id, {all}) SELECT $2, {all} FROM jsonb_to_recordset($1::jsonb) AS r({typed})
             ON CONFLICT ({keys}, (coalesce(site_id, {EVERY_SITE}))) DO UPDATE SET {set}, is_active = true
             WHERE ({old}, t.is_active) IS DISTINCT FROM ({new}, true)",
            all = names("", 0),
            old = names("t.", self.keys),
            new = names("excluded.", self.keys),
        )
    }
}

impl Central {
    /// The id of the site called `code`.
    ///
    /// # Errors
    /// When there is none that this login may see.
    pub async fn site_of(&self, code: &str) -> Result<Uuid, UplinkError> {
        let sql = "SELECT id FROM loupe.sites WHERE code = $1";
        let rows =
            self.client.query_typed(sql, &[(&code, Type::TEXT)]).await.map_err(UplinkError::statement(&self.server))?;
        let detail = format!("there is no site `{code}`; `loupe db provision-site --code {code}` makes it");
        rows.first().map(|row| row.get(0)).ok_or(UplinkError::Publish { detail })
    }

    /// What the devices of `site` (`None`: of every site) have of the catalogue: its own rows before those for all.
    ///
    /// # Errors
    /// When the server refuses, or its schema has no such tables.
    pub async fn published_catalogue(&self, site: Option<Uuid>) -> Result<Catalogue, UplinkError> {
        let scope = "t.is_active AND (t.site_id IS NULL OR t.site_id = $1)";
        let list = |table: &str, key: &str, body: &str| {
            format!(
                "(SELECT coalesce(jsonb_agg(b), '[]') FROM (SELECT DISTINCT ON ({key}) {body} AS b FROM loupe.{table} t
                    WHERE {scope} ORDER BY {key}, t.site_id NULLS LAST) x)"
            )
        };
        let kit = "jsonb_build_object('kit_code', t.kit_code, 'name', t.name, 'lines', (SELECT coalesce(jsonb_agg(
            to_jsonb(l) ORDER BY l.ordinal), '[]') FROM loupe.kit_parts l WHERE l.kit_id = t.id))";
        let sql = format!(
            "SELECT jsonb_build_object('categories', {}, 'colors', {}, 'parts', {}, 'relations', {}, 'policies', {},
                'kits', {})",
            list("categories", "t.code", "to_jsonb(t)"),
            list("colors", "t.color_id", "to_jsonb(t)"),
            list("parts", "t.part_number", "to_jsonb(t)"),
            list("part_relations", "t.part_number, t.related_part_number", "to_jsonb(t)"),
            list("access_policies", "t.subject_kind, t.subject", "to_jsonb(t)"),
            list("kits", "t.kit_code", kit),
        );
        let rows = self
            .client
            .query_typed(&sql, &[(&site, Type::UUID)])
            .await
            .map_err(UplinkError::statement(&self.server))?;
        let document: Value = rows.first().map_or(Value::Null, |row| row.get(0));
        serde_json::from_value(document)
            .map_err(|error| UplinkError::Publish { detail: format!("what is published cannot be read: {error}") })
    }

    /// Publish a checked catalogue for `site` (`None`: every site); how many rows changed.
    ///
    /// # Errors
    /// When this login may not, or the server refuses; then nothing changed.
    pub async fn publish_catalogue(&mut self, site: Option<Uuid>, batch: &Catalogue) -> Result<u64, UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let lists = [
            json!(batch.categories),
            json!(batch.colors),
            json!(batch.parts),
            json!(batch.relations),
            json!(batch.policies),
            json!(batch.kits),
        ];
        let mut changed = 0;
        for (upsert, rows) in UPSERTS.iter().zip(&lists) {
            changed += transaction
                .execute_typed(&upsert.sql(), &[(rows, Type::JSONB), (&site, Type::UUID)])
                .await
                .map_err(&on_statement)?;
        }
        changed += publish_lines(&transaction, site, &json!(batch.kits)).await.map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        Ok(changed)
    }

    /// Publish a recipe and have the stations of `site` (`None`: of every site) run it; `false` when they do already.
    ///
    /// # Errors
    /// When this login may not, or the server refuses; then nothing changed.
    pub async fn publish_recipe(&mut self, site: Option<Uuid>, recipe: &NewRecipe) -> Result<bool, UplinkError> {
        let on_statement = UplinkError::statement(&self.server);
        let transaction = self.client.transaction().await.map_err(&on_statement)?;
        let sha256 = Digest::of(recipe.body.as_bytes());
        let insert = format!(
            "INSERT INTO loupe.recipes (site_id, sha256, name, version_label, body) VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (sha256, (coalesce(site_id, {EVERY_SITE}))) DO NOTHING"
        );
        transaction
            .execute_typed(
                &insert,
                &[
                    (&site, Type::UUID),
                    (&sha256.as_bytes().as_slice(), Type::BYTEA),
                    (&recipe.name, Type::TEXT),
                    (&recipe.version_label, Type::TEXT),
                    (&recipe.body, Type::TEXT),
                ],
            )
            .await
            .map_err(&on_statement)?;
        let end = "UPDATE loupe.recipe_assignments a SET is_active = false
             WHERE a.is_active AND a.site_id IS NOT DISTINCT FROM $1 AND a.station IS NOT DISTINCT FROM $2
                AND NOT EXISTS (SELECT FROM loupe.recipes r WHERE r.id = a.recipe_id AND r.sha256 = $3)";
        let begin = "INSERT INTO loupe.recipe_assignments (site_id, station, recipe_id, note)
             SELECT $1, $2, r.id, $4 FROM loupe.recipes r
             WHERE r.sha256 = $3 AND r.site_id IS NOT DISTINCT FROM $1
                AND NOT EXISTS (SELECT FROM loupe.recipe_assignments a WHERE a.is_active
                    AND a.site_id IS NOT DISTINCT FROM $1 AND a.station IS NOT DISTINCT FROM $2)";
        let scope: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 3] =
            [(&site, Type::UUID), (&recipe.station, Type::TEXT), (&sha256.as_bytes().as_slice(), Type::BYTEA)];
        transaction.execute_typed(end, &scope).await.map_err(&on_statement)?;
        let [site, station, sha256] = scope;
        let begun = transaction
            .execute_typed(begin, &[site, station, sha256, (&recipe.note, Type::TEXT)])
            .await
            .map_err(&on_statement)?;
        transaction.commit().await.map_err(&on_statement)?;
        Ok(begun > 0)
    }

    /// Publish the fit of an index generation, checked, for `site` (`None`: every site); `false` when it is already.
    ///
    /// # Errors
    /// When this login may not, or the server refuses; then nothing changed.
    pub async fn publish_fit(
        &mut self,
        site: Option<Uuid>,
        generation_sha256: Digest,
        body: &str,
    ) -> Result<bool, UplinkError> {
        let sql = format!(
            "INSERT INTO loupe.fits AS t (site_id, generation_sha256, sha256, body) VALUES ($1, $2, $3, $4)
             ON CONFLICT (generation_sha256, (coalesce(site_id, {EVERY_SITE})))
             DO UPDATE SET sha256 = excluded.sha256, body = excluded.body, is_active = true
             WHERE (t.sha256, t.is_active) IS DISTINCT FROM (excluded.sha256, true)"
        );
        let sha256 = Digest::of(body.as_bytes());
        let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 4] = [
            (&site, Type::UUID),
            (&generation_sha256.as_bytes().as_slice(), Type::BYTEA),
            (&sha256.as_bytes().as_slice(), Type::BYTEA),
            (&body, Type::TEXT),
        ];
        let changed = self.client.execute_typed(&sql, &params).await.map_err(UplinkError::statement(&self.server))?;
        Ok(changed > 0)
    }

    /// How the sites (or `site`) stand to what is published for them, as their devices say.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn provisioning_state(&self, site: Option<Uuid>) -> Result<Vec<SiteState>, UplinkError> {
        let sql = "SELECT s.code, v.device_id, v.subject_kind, v.subject, v.outcome, encode(v.sha256, 'hex'),
                encode(v.previous_sha256, 'hex'), v.detail, encode(v.wanted_sha256, 'hex'),
                coalesce(v.is_as_wanted, false),
                to_char(v.occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"')
             FROM loupe.v_provisioning_state v JOIN loupe.sites s ON s.id = v.site_id
             WHERE $1::uuid IS NULL OR v.site_id = $1 ORDER BY 1, 3 DESC, 4, 2";
        let rows =
            self.client.query_typed(sql, &[(&site, Type::UUID)]).await.map_err(UplinkError::statement(&self.server))?;
        Ok(rows
            .iter()
            .map(|row| SiteState {
                site: row.get(0),
                device_id: row.get(1),
                subject_kind: row.get(2),
                subject: row.get(3),
                outcome: row.get(4),
                sha256: row.get(5),
                previous_sha256: row.get(6),
                detail: row.get(7),
                wanted_sha256: row.get(8),
                is_as_wanted: row.get(9),
                occurred_at: row.get(10),
            })
            .collect())
    }

    /// What is published for `site` and for every site; without a site, everything.
    ///
    /// # Errors
    /// When the server refuses.
    pub async fn published(&self, site: Option<Uuid>, kind: Option<&str>) -> Result<Vec<Published>, UplinkError> {
        let parts: Vec<String> = KINDS
            .iter()
            .filter(|known| kind.is_none_or(|kind| kind == known.name))
            .map(|Kind { name, table, key, label }| {
                format!(
                    "SELECT '{name}', {key}, s.code, {label}, t.change_seq,
                        to_char(t.updated_at AT TIME ZONE 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS\"Z\"'), t.updated_by
                     FROM loupe.{table} t LEFT JOIN loupe.sites s ON s.id = t.site_id
                     WHERE t.is_active AND ($1::uuid IS NULL OR t.site_id IS NULL OR t.site_id = $1)"
                )
            })
            .collect();
        let sql = format!("{} ORDER BY 1, 2, 3", parts.join(" UNION ALL "));
        let rows = self
            .client
            .query_typed(&sql, &[(&site, Type::UUID)])
            .await
            .map_err(UplinkError::statement(&self.server))?;
        Ok(rows
            .iter()
            .map(|row| Published {
                kind: row.get(0),
                key: row.get(1),
                site: row.get(2),
                name: row.get::<_, Option<String>>(3).unwrap_or_default(),
                change_seq: row.get(4),
                updated_at: row.get(5),
                updated_by: row.get(6),
            })
            .collect())
    }

    /// Withdraw the row of `kind` called `key` that is for exactly `site` (`None`: for every site).
    ///
    /// # Errors
    /// When there is none, a published kit needs it, or this login may not.
    pub async fn withdraw(&mut self, kind: &str, key: &str, site: Option<Uuid>) -> Result<(), UplinkError> {
        let Some(Kind { table, key: column, .. }) = KINDS.iter().find(|known| known.name == kind) else {
            let detail = format!("`{kind}` is none of {}", PUBLISHED_KINDS.join(", "));
            return Err(UplinkError::Publish { detail });
        };
        if kind == "part" {
            self.refuse_used(key, site).await?;
        }
        let sql = format!(
            "UPDATE loupe.{table} t SET is_active = false
             WHERE t.is_active AND {column} = $1 AND t.site_id IS NOT DISTINCT FROM $2"
        );
        let withdrawn = self
            .client
            .execute_typed(&sql, &[(&key, Type::TEXT), (&site, Type::UUID)])
            .await
            .map_err(UplinkError::statement(&self.server))?;
        if withdrawn == 0 {
            let detail = format!("no {kind} `{key}` is published for exactly this; see `loupe publish list`");
            return Err(UplinkError::Publish { detail });
        }
        Ok(())
    }

    /// A part stays while a kit of its scope expects it and no other row describes it.
    async fn refuse_used(&self, part: &str, site: Option<Uuid>) -> Result<(), UplinkError> {
        let sql = "SELECT k.kit_code FROM loupe.kits k JOIN loupe.kit_parts l ON l.kit_id = k.id
             WHERE k.is_active AND l.part_number = $1 AND ($2::uuid IS NULL OR k.site_id = $2)
                AND NOT ($2::uuid IS NOT NULL
                    AND EXISTS (SELECT FROM loupe.parts p WHERE p.part_number = $1 AND p.is_active AND p.site_id IS NULL))
             ORDER BY 1 LIMIT 1";
        let rows = self
            .client
            .query_typed(sql, &[(&part, Type::TEXT), (&site, Type::UUID)])
            .await
            .map_err(UplinkError::statement(&self.server))?;
        let Some(row) = rows.first() else { return Ok(()) };
        let kit: String = row.get(0);
        let detail =
            format!("kit `{kit}` expects part `{part}`; withdraw the kit or publish it without the part first");
        Err(UplinkError::Publish { detail })
    }
}

/// The lines of `kits` where they differ from those published; a kit whose lines change travels anew.
async fn publish_lines(
    transaction: &Transaction<'_>,
    site: Option<Uuid>,
    kits: &Value,
) -> Result<u64, tokio_postgres::Error> {
    let wanted = "WITH wanted AS (
            SELECT k.id AS kit_id, (l.ordinal - 1)::int AS ordinal, l.line ->> 'part_number' AS part_number,
                (l.line ->> 'color_id')::int AS color_id, (l.line ->> 'quantity')::int AS quantity,
                (l.line ->> 'is_spare')::boolean AS is_spare, l.line ->> 'alternate_group' AS alternate_group
            FROM jsonb_array_elements($1) AS kit(kit)
            JOIN loupe.kits k ON k.kit_code = kit ->> 'kit_code' AND k.site_id IS NOT DISTINCT FROM $2
            CROSS JOIN jsonb_array_elements(kit -> 'lines') WITH ORDINALITY AS l(line, ordinal)),
        here AS (
            SELECT p.* FROM loupe.kit_parts p JOIN loupe.kits k ON k.id = p.kit_id
            WHERE k.site_id IS NOT DISTINCT FROM $2
                AND k.kit_code IN (SELECT kit ->> 'kit_code' FROM jsonb_array_elements($1) AS kit(kit))),
        differing AS (
            SELECT kit_id FROM (SELECT * FROM wanted EXCEPT SELECT * FROM here) a
            UNION SELECT kit_id FROM (SELECT * FROM here EXCEPT SELECT * FROM wanted) b)";
    let params: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] = [(kits, Type::JSONB), (&site, Type::UUID)];
    // The kits that differ are kept over the two statements: after the first they would look otherwise.
    let differing = format!("{wanted} SELECT kit_id FROM differing");
    let rows = transaction.query_typed(&differing, &params).await?;
    let differing: Vec<Uuid> = rows.iter().map(|row| row.get(0)).collect();
    if differing.is_empty() {
        return Ok(0);
    }
    let delete = "DELETE FROM loupe.kit_parts WHERE kit_id = ANY($1)";
    transaction.execute_typed(delete, &[(&differing, Type::UUID_ARRAY)]).await?;
    let insert = format!("{wanted} INSERT INTO loupe.kit_parts SELECT * FROM wanted WHERE kit_id = ANY($3)");
    let [kits, site] = params;
    transaction.execute_typed(&insert, &[kits, site, (&differing, Type::UUID_ARRAY)]).await?;
    Ok(differing.len() as u64)
}
