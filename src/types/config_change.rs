//! What a configuration says, key by key, and what changed of it.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::{Digest, Timestamp};

/// Where a value of the configuration comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ConfigSource {
    /// A file on the device.
    #[default]
    File,
    /// What the centre publishes for the device.
    Bundle,
    /// A command line.
    Command,
}

impl ConfigSource {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            ConfigSource::File => "file",
            ConfigSource::Bundle => "bundle",
            ConfigSource::Command => "command",
        }
    }
}

/// One value, with nothing secret in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigValue {
    /// JSON text.
    pub json: String,
    pub source: ConfigSource,
}

/// All that a device works by, to be compared with what it worked by before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ConfigRecord {
    /// By `section.key`.
    pub values: BTreeMap<String, ConfigValue>,
    /// Where keys that are gone were taken out.
    pub source: ConfigSource,
    /// Who changed it, where that was said.
    pub changed_by: Option<String>,
    pub change_reason: Option<String>,
    /// Keys of which at least one must have changed for the two above to count: what was said of the change before says
    /// nothing of this one. Empty: they count.
    pub signed_by: Vec<String>,
}

impl ConfigRecord {
    /// Of the keys in their order with their values, as one JSON object.
    #[must_use]
    pub fn sha256(&self) -> Digest {
        let members: Vec<String> =
            self.values.iter().map(|(key, value)| format!("{}:{}", Value::from(key.as_str()), value.json)).collect();
        Digest::of(format!("{{{}}}", members.join(",")).as_bytes())
    }
}

/// One key that changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ConfigChange {
    pub occurred_at: Timestamp,
    /// The same for what changed together.
    pub change_id: Uuid,
    pub config_key: String,
    /// `None`: there was none.
    pub old_value: Option<Value>,
    /// `None`: there is none any more.
    pub new_value: Option<Value>,
    /// Of the whole configuration from then on.
    pub config_sha256: Digest,
    /// As [`ConfigSource::as_str`] says it.
    pub source: String,
    pub changed_by: Option<String>,
    pub change_reason: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::{ConfigRecord, ConfigSource, ConfigValue};
    use crate::types::Digest;

    #[test]
    fn the_digest_is_that_of_one_json_object_whatever_the_order_of_insertion() {
        let value = |json: &str| ConfigValue { json: json.to_owned(), source: ConfigSource::File };
        let mut record = ConfigRecord::default();
        record.values.insert("b.\"x".to_owned(), value("[1]"));
        record.values.insert("a".to_owned(), value("\"한\""));
        assert_eq!(record.sha256(), Digest::of("{\"a\":\"한\",\"b.\\\"x\":[1]}".as_bytes()));
        let before = record.sha256();
        record.values.insert("a".to_owned(), value("\"하\""));
        assert_ne!(record.sha256(), before);
    }
}
