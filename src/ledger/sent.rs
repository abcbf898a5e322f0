//! What is sent: the tables, how each column travels, and which rows make a unit.
//!
//! The ledger reads rows cell by cell into a [`RowSink`]; it knows nothing of the format on the wire.

/// How a column travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Uuid,
    Digest,
    /// Microseconds since 1970, UTC.
    Time,
    /// f32, finite.
    Real,
    Int,
    Bool,
    Text,
    /// A list of codes.
    Codes,
    Json,
}

/// One value on its way, as the ledger holds it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Cell<'a> {
    Null,
    Uuid(&'a [u8; 16]),
    Digest(&'a [u8; 32]),
    /// Microseconds since 1970, UTC.
    Time(i64),
    Real(f32),
    Int(i64),
    Bool(bool),
    Text(&'a str),
    /// A JSON list of strings, not parsed yet.
    Codes(&'a str),
    /// JSON, not parsed yet.
    Json(&'a str),
}

/// Where the rows of units go.
pub trait RowSink {
    /// What follows is one unit, until the next call of this.
    fn begin_unit(&mut self);
    /// Forget everything since [`RowSink::begin_unit`].
    fn drop_unit(&mut self);
    /// A row of `SENT_TABLES[table]` follows, cell by cell, in the order of its columns.
    fn begin_row(&mut self, table: usize);
    /// Take the next cell; `false` where it cannot be read.
    fn cell(&mut self, column: usize, cell: Cell<'_>) -> bool;
    /// Length of all that it holds, as it would be sent.
    fn size_bytes(&self) -> usize;
}

/// A table that is sent: its columns here and there, without `site_id` and `device_id`, which the uplink adds.
#[derive(Debug)]
pub struct SentTable {
    /// Name at the central side, and in exported units.
    pub name: &'static str,
    /// Name in the ledger.
    pub local_name: &'static str,
    /// Columns of the central key after `site_id`.
    pub key: &'static [&'static str],
    /// Columns with how each travels.
    pub columns: &'static [(&'static str, Kind)],
}

impl SentTable {
    /// Names of the columns that are sent.
    pub fn columns(&self) -> impl Iterator<Item = &'static str> {
        self.columns.iter().map(|(name, _)| *name)
    }

    pub(super) fn select(&self, condition: &str) -> String {
        let columns: Vec<_> = self.columns().collect();
        format!("SELECT {} FROM {} WHERE {condition}", columns.join(", "), self.local_name)
    }
}

/// Every table that is sent, in the order of sending.
pub const SENT_TABLES: &[SentTable] = &[
    PROVENANCES,
    INSPECTIONS,
    ITEMS,
    ANOMALY_MAPS,
    FRAME_QA_LOGS,
    ARTIFACTS,
    REVIEWS,
    KIT_SESSIONS,
    STOCK_LEDGER,
    REFUSALS,
    CONFIG_HISTORY,
    GPU_STATS,
    OPERATORS,
    FEEDBACK,
    ACTION_LOGS,
    SYSTEM_STATS,
];

// Positions in the list above.
pub(super) const PROVENANCES_AT: usize = 0;
pub(super) const INSPECTIONS_AT: usize = 1;
const ITEMS_AT: usize = 2;
const ANOMALY_MAPS_AT: usize = 3;
const FRAME_QA_LOGS_AT: usize = 4;
const ARTIFACTS_AT: usize = 5;
const REVIEWS_AT: usize = 6;
const KIT_SESSIONS_AT: usize = 7;
const STOCK_LEDGER_AT: usize = 8;
const REFUSALS_AT: usize = 9;
const CONFIG_HISTORY_AT: usize = 10;
pub(super) const GPU_STATS_AT: usize = 11;
const OPERATORS_AT: usize = 12;
const FEEDBACK_AT: usize = 13;
const ACTION_LOGS_AT: usize = 14;
pub(super) const SYSTEM_STATS_AT: usize = 15;
/// Position of `provenance_sha256` in `inspections`.
pub(super) const PROVENANCE_COLUMN: usize = 13;

/// A kind of unit: the root's table, and how the rows of each table are found by the root's id.
#[derive(Debug)]
pub(super) struct Family {
    /// As the outbox names it.
    pub root: &'static str,
    /// Position in [`SENT_TABLES`], and the condition; the first is the root's.
    pub members: &'static [(usize, &'static str)],
}

const BY_ID: &str = "id = ?1";
const BY_INSPECTION: &str = "inspection_id = ?1 ORDER BY id";

pub(super) const FAMILIES: &[Family] = &[
    Family {
        root: "inspections",
        members: &[
            (INSPECTIONS_AT, BY_ID),
            (ITEMS_AT, BY_INSPECTION),
            (ANOMALY_MAPS_AT, BY_INSPECTION),
            (FRAME_QA_LOGS_AT, BY_INSPECTION),
            (ARTIFACTS_AT, BY_INSPECTION),
        ],
    },
    Family { root: "reviews", members: &[(REVIEWS_AT, BY_ID)] },
    Family {
        root: "kit_sessions",
        members: &[(KIT_SESSIONS_AT, BY_ID), (STOCK_LEDGER_AT, "reference_id = ?1 ORDER BY seq")],
    },
    Family { root: "stock_ledger", members: &[(STOCK_LEDGER_AT, BY_ID)] },
    Family { root: "refusal_reports", members: &[(REFUSALS_AT, BY_ID)] },
    Family { root: "operators", members: &[(OPERATORS_AT, BY_ID)] },
    Family { root: "feedback", members: &[(FEEDBACK_AT, BY_ID)] },
    Family { root: "action_logs", members: &[(ACTION_LOGS_AT, BY_ID)] },
    // What changed together is one unit, named by the change.
    Family { root: "config_history", members: &[(CONFIG_HISTORY_AT, "change_id = ?1 ORDER BY seq")] },
];

const INSPECTIONS: SentTable = SentTable {
    name: "inspections",
    local_name: "inspections",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("code", Kind::Text),
        ("station", Kind::Text),
        ("camera", Kind::Text),
        ("recipe", Kind::Text),
        ("source", Kind::Text),
        ("frame_seq", Kind::Int),
        ("frame_width_px", Kind::Int),
        ("frame_height_px", Kind::Int),
        ("verdict", Kind::Text),
        ("reasons", Kind::Codes),
        ("frame_sha256", Kind::Digest),
        ("provenance_sha256", Kind::Digest),
        ("anomaly_score_raw", Kind::Real),
        ("anomaly_score", Kind::Real),
        ("min_similarity", Kind::Real),
        ("min_margin", Kind::Real),
        ("item_count", Kind::Int),
        ("decided_at", Kind::Time),
        ("latency_ms", Kind::Real),
        ("deadline_ms", Kind::Real),
        ("is_provider_fallback", Kind::Bool),
    ],
};

const ITEMS: SentTable = SentTable {
    name: "items",
    local_name: "items",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("ordinal", Kind::Int),
        ("x_px", Kind::Real),
        ("y_px", Kind::Real),
        ("width_px", Kind::Real),
        ("height_px", Kind::Real),
        ("label", Kind::Text),
        ("detection_confidence", Kind::Real),
        ("part_id", Kind::Text),
        ("color_id", Kind::Text),
        ("similarity", Kind::Real),
        ("second_part_id", Kind::Text),
        ("second_similarity", Kind::Real),
        ("margin", Kind::Real),
        ("tier", Kind::Text),
        ("entered_stage2", Kind::Bool),
        ("is_held", Kind::Bool),
        ("stage1_ms", Kind::Real),
        ("stage2_ms", Kind::Real),
        ("top_k", Kind::Json),
        ("verdict", Kind::Text),
        ("reasons", Kind::Codes),
    ],
};

const ANOMALY_MAPS: SentTable = SentTable {
    name: "anomaly_maps",
    local_name: "anomaly_maps",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("bank_sha256", Kind::Digest),
        ("score_raw", Kind::Real),
        ("score", Kind::Real),
        ("threshold", Kind::Real),
        ("image_threshold_raw", Kind::Real),
        ("pixel_threshold_raw", Kind::Real),
        ("map_min", Kind::Real),
        ("map_max", Kind::Real),
        ("area_above_ratio", Kind::Real),
    ],
};

const FRAME_QA_LOGS: SentTable = SentTable {
    name: "frame_qa_logs",
    local_name: "frame_qa_logs",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("camera", Kind::Text),
        ("frame_seq", Kind::Int),
        ("frame_sha256", Kind::Digest),
        ("ssim_score", Kind::Real),
        ("sharpness", Kind::Real),
        ("noise_level", Kind::Real),
        ("contrast_ratio", Kind::Real),
        ("brightness_ratio", Kind::Real),
        ("saturation_ratio", Kind::Real),
        ("clipped_ratio", Kind::Real),
        ("phash", Kind::Int),
        ("is_duplicate", Kind::Bool),
        ("duplicate_distance", Kind::Int),
        ("age_ms", Kind::Real),
        ("issues", Kind::Codes),
        ("status", Kind::Text),
        ("processing_ms", Kind::Real),
    ],
};

const REVIEWS: SentTable = SentTable {
    name: "reviews",
    local_name: "reviews",
    key: &["occurred_at", "id"],
    columns: &[
        ("occurred_at", Kind::Time),
        ("id", Kind::Uuid),
        ("subject_kind", Kind::Text),
        ("subject_id", Kind::Uuid),
        ("subject_at", Kind::Time),
        ("inspection_id", Kind::Uuid),
        ("ordinal", Kind::Int),
        ("review_status", Kind::Text),
        ("shown_part_id", Kind::Text),
        ("corrected_part_id", Kind::Text),
        ("corrected_color_id", Kind::Text),
        ("undoes_id", Kind::Uuid),
        ("reviewer", Kind::Text),
        ("reason", Kind::Text),
    ],
};

const KIT_SESSIONS: SentTable = SentTable {
    name: "kit_sessions",
    local_name: "kit_sessions",
    key: &["started_at", "id"],
    columns: &[
        ("started_at", Kind::Time),
        ("id", Kind::Uuid),
        ("started_by", Kind::Text),
        ("kit_code", Kind::Text),
        ("kit", Kind::Json),
        ("station", Kind::Text),
        ("ended_at", Kind::Time),
        ("ended_by", Kind::Text),
        ("outcome", Kind::Text),
        ("reason", Kind::Text),
        ("is_complete", Kind::Bool),
        ("tray_count", Kind::Int),
        ("expected_count", Kind::Int),
        ("found_count", Kind::Int),
        ("missing_count", Kind::Int),
        ("surplus_count", Kind::Int),
        ("doubtful_count", Kind::Int),
        ("result", Kind::Json),
    ],
};

const STOCK_LEDGER: SentTable = SentTable {
    name: "stock_ledger",
    local_name: "stock_ledger",
    key: &["recorded_at", "id"],
    columns: &[
        ("recorded_at", Kind::Time),
        ("id", Kind::Uuid),
        ("part_id", Kind::Text),
        ("color_id", Kind::Int),
        ("delta", Kind::Int),
        ("reason", Kind::Text),
        ("reference_type", Kind::Text),
        ("reference_id", Kind::Uuid),
        ("previous_quantity", Kind::Int),
        ("new_quantity", Kind::Int),
        ("author", Kind::Text),
        ("note", Kind::Text),
    ],
};

const ARTIFACTS: SentTable = SentTable {
    name: "artifacts",
    local_name: "sent_artifacts",
    key: &["captured_at", "id"],
    columns: &[
        ("captured_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("kind", Kind::Text),
        ("relative_path", Kind::Text),
        ("content_type", Kind::Text),
        ("size_bytes", Kind::Int),
        ("sha256", Kind::Digest),
        ("width_px", Kind::Int),
        ("height_px", Kind::Int),
    ],
};

const REFUSALS: SentTable = SentTable {
    name: "refusals",
    local_name: "refusal_reports",
    key: &["minute", "id"],
    columns: &[
        ("minute", Kind::Time),
        ("id", Kind::Uuid),
        ("station", Kind::Text),
        ("reason", Kind::Text),
        ("version", Kind::Int),
        ("refused", Kind::Int),
    ],
};

const CONFIG_HISTORY: SentTable = SentTable {
    name: "config_history",
    local_name: "config_history",
    key: &["occurred_at", "id"],
    columns: &[
        ("occurred_at", Kind::Time),
        ("id", Kind::Uuid),
        ("change_id", Kind::Uuid),
        ("config_key", Kind::Text),
        ("old_value", Kind::Json),
        ("new_value", Kind::Json),
        ("config_sha256", Kind::Digest),
        ("source", Kind::Text),
        ("changed_by", Kind::Text),
        ("change_reason", Kind::Text),
    ],
};

const PROVENANCES: SentTable = SentTable {
    name: "provenances",
    local_name: "provenances",
    key: &["sha256"],
    columns: &[("sha256", Kind::Digest), ("created_at", Kind::Time), ("record", Kind::Text)],
};

const GPU_STATS: SentTable = SentTable {
    name: "gpu_stats",
    local_name: "gpu_stats",
    key: &["recorded_at", "id"],
    columns: &[
        ("recorded_at", Kind::Time),
        ("id", Kind::Uuid),
        ("gpu_index", Kind::Int),
        ("gpu_name", Kind::Text),
        ("gpu_util_pct", Kind::Real),
        ("memory_used_bytes", Kind::Int),
        ("memory_total_bytes", Kind::Int),
        ("temperature_c", Kind::Real),
        ("power_usage_w", Kind::Real),
        ("power_limit_w", Kind::Real),
        ("fan_speed_pct", Kind::Real),
        ("sm_clock_mhz", Kind::Int),
        ("memory_clock_mhz", Kind::Int),
        ("pstate", Kind::Int),
        ("throttle_reasons", Kind::Int),
        ("inference_rate_hz", Kind::Real),
        ("memory_bandwidth_util_pct", Kind::Real),
        ("sm_clock_max_mhz", Kind::Int),
        ("compute_processes_count", Kind::Int),
        ("pcie_replay_counter", Kind::Int),
        ("temp_slowdown_threshold_c", Kind::Real),
        ("memory_clock_max_mhz", Kind::Int),
        ("pcie_link_gen", Kind::Int),
        ("pcie_link_width", Kind::Int),
        ("pcie_tx_kb_s", Kind::Int),
        ("pcie_rx_kb_s", Kind::Int),
        ("encoder_util_pct", Kind::Real),
        ("decoder_util_pct", Kind::Real),
        ("bar1_used_bytes", Kind::Int),
    ],
};

const OPERATORS: SentTable = SentTable {
    name: "operators",
    local_name: "operators",
    key: &["operator_id", "version", "id"],
    columns: &[
        ("operator_id", Kind::Uuid),
        ("version", Kind::Int),
        ("id", Kind::Uuid),
        ("epoch", Kind::Int),
        ("changed_at", Kind::Time),
        ("changed_by", Kind::Text),
        ("username", Kind::Text),
        ("full_name", Kind::Text),
        ("role", Kind::Text),
        ("is_active", Kind::Bool),
    ],
};

const FEEDBACK: SentTable = SentTable {
    name: "feedback",
    local_name: "feedback",
    key: &["occurred_at", "id"],
    columns: &[
        ("occurred_at", Kind::Time),
        ("id", Kind::Uuid),
        ("subject_kind", Kind::Text),
        ("subject_id", Kind::Uuid),
        ("subject_at", Kind::Time),
        ("inspection_id", Kind::Uuid),
        ("ordinal", Kind::Int),
        ("feedback_type", Kind::Text),
        ("rating", Kind::Int),
        ("expected_severity", Kind::Int),
        ("notes", Kind::Text),
        ("author", Kind::Text),
        ("operator_id", Kind::Uuid),
    ],
};

const ACTION_LOGS: SentTable = SentTable {
    name: "action_logs",
    local_name: "action_logs",
    key: &["occurred_at", "id"],
    columns: &[
        ("occurred_at", Kind::Time),
        ("id", Kind::Uuid),
        ("inspection_id", Kind::Uuid),
        ("inspection_at", Kind::Time),
        ("action_taken", Kind::Text),
        ("action_result", Kind::Text),
        ("notes", Kind::Text),
        ("action_by", Kind::Text),
        ("operator_id", Kind::Uuid),
    ],
};

const SYSTEM_STATS: SentTable = SentTable {
    name: "system_stats",
    local_name: "system_stats",
    key: &["recorded_at", "id"],
    columns: &[
        ("recorded_at", Kind::Time),
        ("id", Kind::Uuid),
        ("cpu_usage_pct", Kind::Real),
        ("load1", Kind::Real),
        ("memory_used_bytes", Kind::Int),
        ("memory_total_bytes", Kind::Int),
        ("process_rss_bytes", Kind::Int),
        ("disk_used_pct", Kind::Real),
        ("disk_free_bytes", Kind::Int),
        ("open_fds", Kind::Int),
        ("temperature_c", Kind::Real),
        ("fsync_p99_ms", Kind::Real),
        ("clock_offset_ms", Kind::Real),
        ("uptime_s", Kind::Int),
        ("outbox_pending", Kind::Int),
        ("outbox_oldest_s", Kind::Real),
    ],
};

#[cfg(test)]
mod tests {
    use super::{
        ACTION_LOGS_AT, ANOMALY_MAPS_AT, ARTIFACTS_AT, CONFIG_HISTORY_AT, FAMILIES, FEEDBACK_AT, FRAME_QA_LOGS_AT,
        GPU_STATS_AT, INSPECTIONS_AT, ITEMS_AT, KIT_SESSIONS_AT, OPERATORS_AT, PROVENANCE_COLUMN, PROVENANCES_AT,
        REFUSALS_AT, REVIEWS_AT, SENT_TABLES, STOCK_LEDGER_AT, SYSTEM_STATS_AT,
    };

    #[test]
    fn positions_name_their_tables() {
        let expected = [
            (PROVENANCES_AT, "provenances"),
            (INSPECTIONS_AT, "inspections"),
            (ITEMS_AT, "items"),
            (ANOMALY_MAPS_AT, "anomaly_maps"),
            (FRAME_QA_LOGS_AT, "frame_qa_logs"),
            (ARTIFACTS_AT, "artifacts"),
            (REVIEWS_AT, "reviews"),
            (KIT_SESSIONS_AT, "kit_sessions"),
            (STOCK_LEDGER_AT, "stock_ledger"),
            (REFUSALS_AT, "refusals"),
            (CONFIG_HISTORY_AT, "config_history"),
            (GPU_STATS_AT, "gpu_stats"),
            (OPERATORS_AT, "operators"),
            (FEEDBACK_AT, "feedback"),
            (ACTION_LOGS_AT, "action_logs"),
            (SYSTEM_STATS_AT, "system_stats"),
        ];
        assert_eq!(expected.len(), SENT_TABLES.len());
        for (position, name) in expected {
            assert_eq!(SENT_TABLES[position].name, name);
        }
        assert_eq!(SENT_TABLES[INSPECTIONS_AT].columns[PROVENANCE_COLUMN].0, "provenance_sha256");
        for family in FAMILIES {
            assert_eq!(SENT_TABLES[family.members[0].0].local_name, family.root);
        }
    }
}
