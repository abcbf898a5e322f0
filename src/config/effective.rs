//! The configuration that a device works by, key by key, with nothing secret in it: what its history is made of.
//!
//! A key is `section.key`; of a station `stations.NAME.key`, of the recipe that it runs `stations.NAME.recipe.section.key`
//! as the recipe's text says it. Defaults of the daemon's own keys are filled in. Invariants: a secret becomes an object
//! with a SHA-256 salted with device and key, so that one sees that it changed, and neither what it is nor where else it
//! is used; no value holds a NUL, which PostgreSQL refuses; size and number are bounded (`limits`). Pure.

use serde_json::{Map, Value, json};
use uuid::Uuid;

use super::{ArtifactPolicy, Config, Recipe};
use crate::limits::{CONFIG_KEY_CHARS_MAX, CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX};
use crate::types::{ConfigRecord, ConfigSource, ConfigValue, Digest};
use crate::uplink::server_of;

/// Words in the last part of a key whose value is a secret, unless the key names a file.
const SECRET_WORDS: [&str; 9] =
    ["password", "passwd", "passphrase", "secret", "token", "credential", "dsn", "api_key", "private_key"];
/// Words in a text that stand before a secret.
const SECRET_PARAMETERS: [&str; 5] = ["password=", "passwd=", "pwd=", "token=", "secret="];
/// Key of what [`CONFIG_KEYS_MAX`] leaves out.
const REST_KEY: &str = "config.further_keys";

/// The recipe that a station runs.
#[derive(Debug, Clone, Copy)]
pub struct RunningRecipe<'a> {
    pub station: &'a str,
    pub recipe: &'a Recipe,
    /// It came from the centre.
    pub is_central: bool,
}

/// What the device called `device_id` works by: `config` with the recipes that its stations run.
#[must_use]
pub fn effective(config: &Config, recipes: &[RunningRecipe<'_>], device_id: Uuid) -> ConfigRecord {
    let said = |text: &str| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    let mut keys = Keys { device_id, record: ConfigRecord { source: config.source, ..ConfigRecord::default() } };
    let record = &mut keys.record;
    (record.changed_by, record.change_reason) = (said(&config.change.by), said(&config.change.reason));
    record.signed_by = vec!["change.by".to_owned(), "change.reason".to_owned()];
    keys.add("", &daemon_keys(config), config.source);
    if let Some(uplink) = &config.uplink {
        let dsn = Value::from(uplink.dsn.expose());
        keys.add("uplink.dsn", &dsn, config.source);
    }
    for station in &config.stations {
        let source = serde_json::to_value(&station.source).unwrap_or_default();
        keys.add(&format!("stations.{}.source", part(&station.name)), &source, config.source);
    }
    for RunningRecipe { station, recipe, is_central } in recipes {
        let (source, origin) =
            if *is_central { (ConfigSource::Bundle, "central") } else { (config.source, config.source.as_str()) };
        let prefix = format!("stations.{}", part(station));
        keys.add(&format!("{prefix}.recipe_origin"), &Value::from(origin), config.source);
        keys.add(&format!("{prefix}.recipe_sha256"), &Value::from(recipe.sha256.to_string()), source);
        let said: Value = toml::from_str(&recipe.body).unwrap_or_default();
        keys.add(&format!("{prefix}.recipe"), &said, source);
    }
    keys.bounded()
}

/// The daemon's own keys; its stations and its secret are added apart.
fn daemon_keys(config: &Config) -> Value {
    let storage = &config.storage;
    let policy = &storage.policy;
    let mut document = json!({
        "site": { "code": config.site_code, "name": config.site_name, "id": config.site_id },
        "storage": {
            "state_dir": storage.state_dir,
            "artifacts": match storage.artifacts {
                ArtifactPolicy::All => "all",
                ArtifactPolicy::Exceptions => "exceptions",
                ArtifactPolicy::None => "none",
            },
            "verdict_days": policy.verdict_days,
            "detail_days": policy.detail_days,
            "pass_picture_days": policy.pass_picture_days,
            "picture_days": policy.picture_days,
            "free_low_mb": policy.free_low_bytes >> 20,
            "free_critical_mb": policy.free_critical_bytes >> 20,
            "budget_mb": policy.budget_bytes.map(|bytes| bytes >> 20),
        },
        "runtime": { "onnxruntime": config.onnxruntime, "workers": config.workers },
        "telemetry": { "gpu_interval_s": config.gpu_interval_s, "system_interval_s": config.system_interval_s },
    });
    if let Some(dashboard) = &config.dashboard {
        document["dashboard"] = json!({ "listen": dashboard.listen, "allow_remote": dashboard.allow_remote });
    }
    if let Some(uplink) = &config.uplink {
        document["uplink"] = json!({ "server": server_of(&uplink.dsn), "pull_interval_s": uplink.pull_interval_s });
    }
    if config.change != super::Change::default() {
        document["change"] = json!({ "by": config.change.by, "reason": config.change.reason });
    }
    document
}

struct Keys {
    device_id: Uuid,
    record: ConfigRecord,
}

impl Keys {
    /// `value` and all below it; what says nothing (null) is no key.
    fn add(&mut self, key: &str, value: &Value, source: ConfigSource) {
        match value {
            Value::Null => {}
            // A list or table of secrets has no parts to show.
            value if is_secret_key(key) => self.put(key, value, source),
            Value::Object(members) => self.add_members(key, members, source),
            Value::Array(list) if list.iter().any(|one| one.is_object() || one.is_array()) => {
                for (index, one) in list.iter().enumerate() {
                    self.add(&format!("{key}[{index}]"), one, source);
                }
            }
            value => self.put(key, value, source),
        }
    }

    fn put(&mut self, key: &str, value: &Value, source: ConfigSource) {
        let json = self.safe(key, value).to_string();
        let key = shortened(&key.replace('\0', "\u{fffd}"));
        self.record.values.insert(key, ConfigValue { json, source });
    }

    fn add_members(&mut self, key: &str, members: &Map<String, Value>, source: ConfigSource) {
        for (name, member) in members {
            let path = if key.is_empty() { part(name) } else { format!("{key}.{}", part(name)) };
            self.add(&path, member, source);
        }
    }

    /// The value, or what may be said of it.
    fn safe(&self, key: &str, value: &Value) -> Value {
        if is_secret_key(key) || texts_of(value).any(holds_secret) {
            return json!({ "sha256": self.salted(key, &value.to_string()) });
        }
        let value = without_nul(value);
        let text = value.to_string();
        if text.len() <= CONFIG_VALUE_BYTES_MAX {
            return value;
        }
        json!({ "bytes": text.len(), "sha256": Digest::of(text.as_bytes()).to_string() })
    }

    fn salted(&self, key: &str, secret: &str) -> String {
        Digest::of(format!("{}\n{key}\n{secret}", self.device_id).as_bytes()).to_string()
    }

    /// With as many keys as are kept; a digest stands for the others.
    fn bounded(mut self) -> ConfigRecord {
        let values = &mut self.record.values;
        let Some(first) = values.keys().nth(CONFIG_KEYS_MAX - 1).filter(|_| values.len() > CONFIG_KEYS_MAX).cloned()
        else {
            return self.record;
        };
        let rest = values.split_off(&first);
        let count = rest.len();
        let sha256 = ConfigRecord { values: rest, ..ConfigRecord::default() }.sha256().to_string();
        let json = json!({ "count": count, "sha256": sha256 }).to_string();
        values.insert(REST_KEY.to_owned(), ConfigValue { json, source: self.record.source });
        self.record
    }
}

/// One part of a key path; one that holds a separator stands in quotes.
fn part(name: &str) -> String {
    let is_plain = !name.is_empty() && !name.contains(['.', '[', '"']);
    if is_plain { name.to_owned() } else { Value::from(name).to_string() }
}

/// A key that is too long ends in its digest, so that two of them stay two.
fn shortened(key: &str) -> String {
    if key.chars().count() <= CONFIG_KEY_CHARS_MAX {
        return key.to_owned();
    }
    let digest = Digest::of(key.as_bytes()).to_string();
    let begin: String = key.chars().take(CONFIG_KEY_CHARS_MAX - digest.len() - 1).collect();
    format!("{begin}…{digest}")
}

fn is_secret_key(key: &str) -> bool {
    let last = key.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    !last.ends_with("_file") && SECRET_WORDS.iter().any(|word| last.contains(word))
}

fn texts_of(value: &Value) -> Box<dyn Iterator<Item = &str> + '_> {
    match value {
        Value::String(text) => Box::new(std::iter::once(text.as_str())),
        Value::Array(list) => Box::new(list.iter().flat_map(texts_of)),
        _ => Box::new(std::iter::empty()),
    }
}

/// An address with a login in it, or a parameter that is a secret.
fn holds_secret(text: &str) -> bool {
    let has_login = text.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
    let lower = text.to_ascii_lowercase();
    has_login || SECRET_PARAMETERS.iter().any(|word| lower.contains(word))
}

fn without_nul(value: &Value) -> Value {
    match value {
        Value::String(text) => Value::from(text.replace('\0', "\u{fffd}")),
        Value::Array(list) => list.iter().map(without_nul).collect(),
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use uuid::Uuid;

    use super::{RunningRecipe, effective};
    use crate::config::{Config, Recipe};
    use crate::limits::{CONFIG_KEY_CHARS_MAX, CONFIG_KEYS_MAX, CONFIG_VALUE_BYTES_MAX};
    use crate::types::{ConfigRecord, ConfigSource};

    const DEVICE: Uuid = Uuid::from_u128(7);

    fn config(uplink: &str) -> Config {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("loupe.toml");
        std::fs::write(folder.path().join("r.toml"), "name = \"r\"\n[locate]\nkind = \"blob\"\n").unwrap();
        let text = format!(
            "[site]\ncode = \"plant-07\"\nid = \"{DEVICE}\"\n[change]\nby = \"Kim\"\n{uplink}\n\
             [[stations]]\nname = \"tray\"\nrecipe = \"r.toml\"\nsource = {{ kind = \"folder\", path = \".\" }}\n"
        );
        std::fs::write(&path, text).unwrap();
        Config::load(&path).unwrap()
    }

    /// Of a recipe with this text, which need not be a valid one.
    fn of(config: &Config, body: &str) -> ConfigRecord {
        let path = std::path::Path::new("r.toml");
        let mut recipe = Recipe::parse(path, "name = \"r\"\n[locate]\nkind = \"blob\"\n".to_owned()).unwrap();
        recipe.body = body.to_owned();
        let running = RunningRecipe { station: "tray", recipe: &recipe, is_central: true };
        effective(config, &[running], DEVICE)
    }

    fn value(record: &ConfigRecord, key: &str) -> String {
        record.values.get(key).map_or_else(|| panic!("no {key} in {record:?}"), |value| value.json.clone())
    }

    #[test]
    fn keys_have_their_defaults_and_say_where_they_come_from() {
        let record = of(&config(""), "name = \"r\"\n[match]\naccept_similarity = 0.75\nids = [1, 2]\n");
        assert_eq!(value(&record, "site.code"), "\"plant-07\"");
        assert_eq!(value(&record, "storage.verdict_days"), "30");
        assert_eq!(value(&record, "stations.tray.source.kind"), "\"folder\"");
        assert_eq!(value(&record, "stations.tray.recipe.match.accept_similarity"), "0.75");
        assert_eq!(value(&record, "stations.tray.recipe.match.ids"), "[1,2]");
        assert_eq!(record.values["stations.tray.recipe.name"].source, ConfigSource::Bundle);
        assert_eq!(record.values["site.code"].source, ConfigSource::File);
        assert_eq!(record.changed_by.as_deref(), Some("Kim"));
        assert!(!record.values.keys().any(|key| key.starts_with("uplink.") || key.starts_with("dashboard.")));
    }

    #[test]
    fn a_secret_is_a_digest_in_whatever_form_it_comes() {
        let dsn = |password: &str| config(&format!("[uplink]\ndsn = \"postgresql://dev:{password}@db:6432/loupe\""));
        let body = "[camera]\nurl = \"rtsp://admin:hunter2@10.0.0.7/1\"\npassword = \"hunter2\"\napi_token = 3\n\
                    list = [\"a\", \"host=h password=hunter2\"]\npassword_file = \"/etc/x\"\n\
                    [[nested]]\nsecret = [\"hunter2\"]\n[[tokens]]\nvalue = \"hunter2\"\n";
        let record = of(&dsn("hunter2"), body);
        let all = format!("{record:?}");
        assert!(!all.contains("hunter2"), "{all}");
        for key in ["url", "password", "api_token", "list"] {
            assert!(value(&record, &format!("stations.tray.recipe.camera.{key}")).starts_with("{\"sha256\":\""));
        }
        assert!(value(&record, "stations.tray.recipe.nested[0].secret").starts_with("{\"sha256\":\""));
        assert_eq!(value(&record, "stations.tray.recipe.camera.password_file"), "\"/etc/x\"");
        assert_eq!(value(&record, "uplink.server"), "\"dev@db:6432/loupe sslmode=prefer\"");
        // One sees that it changed, and on another device not that it is the same.
        let changed = of(&dsn("hunter3"), body);
        assert_ne!(value(&record, "uplink.dsn"), value(&changed, "uplink.dsn"));
        let elsewhere = effective(&dsn("hunter2"), &[], Uuid::from_u128(8));
        assert_ne!(value(&record, "uplink.dsn"), value(&elsewhere, "uplink.dsn"));
        assert_eq!(value(&record, "uplink.dsn"), value(&of(&dsn("hunter2"), ""), "uplink.dsn"));
        // A DSN that nothing can read is no less a secret.
        let record = of(&config("[uplink]\ndsn = \"hunter2 with no form\""), "");
        assert!(!format!("{record:?}").contains("hunter2"));
    }

    #[test]
    fn names_with_separators_nul_and_great_length_stay_apart_and_bounded() {
        let long = "k".repeat(2 * CONFIG_KEY_CHARS_MAX);
        let text = "v".repeat(2 * CONFIG_VALUE_BYTES_MAX);
        let body = format!(
            "\"a.b\" = 1\n\"x\\u0000\" = \"y\\u0000\"\n{long}1 = 1\n{long}2 = 2\nlong = \"{text}\"\n[a]\nb = 2\n"
        );
        let record = of(&config(""), &body);
        assert_eq!(value(&record, "stations.tray.recipe.\"a.b\""), "1");
        assert_eq!(value(&record, "stations.tray.recipe.a.b"), "2");
        assert!(value(&record, "stations.tray.recipe.long").starts_with("{\"bytes\":8194,"));
        assert_eq!(record.values.keys().filter(|key| key.contains("kkkk")).count(), 2);
        assert!(record.values.keys().all(|key| key.chars().count() <= CONFIG_KEY_CHARS_MAX && !key.contains('\0')));
        assert!(record.values.values().all(|value| !value.json.contains("\\u0000")), "{record:?}");
    }

    #[test]
    fn more_keys_than_are_kept_stand_behind_a_digest() {
        let body = |last: usize| {
            (0..CONFIG_KEYS_MAX + 50).fold(String::new(), |mut body, at| {
                let said = if at == CONFIG_KEYS_MAX + 49 { last } else { at };
                writeln!(body, "k{at:06} = {said}").unwrap();
                body
            })
        };
        let (one, other) = (of(&config(""), &body(1)), of(&config(""), &body(2)));
        assert_eq!(one.values.len(), CONFIG_KEYS_MAX);
        let rest = |record: &ConfigRecord| value(record, "config.further_keys");
        assert!(rest(&one).contains("\"count\":") && rest(&one) != rest(&other), "{}", rest(&one));
    }
}
