//! The log: one line an event, on standard error.
//!
//! People at a terminal get colours; journald gets neither colours nor a second timestamp; `--log-format json` gives one
//! JSON object a line for a collector. `LOUPE_LOG` (the syntax of `tracing-subscriber`'s `EnvFilter`, as
//! `info,loupe::uplink=debug`) outranks the configured level.

use std::io::IsTerminal as _;

use serde::{Deserialize, Serialize};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::time::SystemTime;

/// The variable that outranks the configured level.
pub const LEVEL_VARIABLE: &str = "LOUPE_LOG";

/// Level where neither the variable nor the config says one.
pub const LEVEL_DEFAULT: &str = "info";

/// How a line looks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Why the log cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    #[error("log level `{directives}` from {origin}: {reason}; write it as `info` or `info,loupe::uplink=debug`")]
    Level { directives: String, origin: &'static str, reason: String },
    #[error("the log is already set up in this process")]
    AlreadySet,
}

/// Set up the process's log; call it once, first thing.
///
/// `config_level` is the configured level, used when `LOUPE_LOG` is unset or empty.
///
/// # Errors
/// When the level cannot be parsed, or the log was set up before.
pub fn init(format: LogFormat, config_level: Option<&str>) -> Result<(), LogError> {
    let variable = std::env::var(LEVEL_VARIABLE).ok();
    let filter = filter(variable.as_deref(), config_level)?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let done = match format {
        LogFormat::Json => builder.json().flatten_event(true).with_current_span(false).try_init(),
        LogFormat::Human => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal());
            if under_journald() { builder.without_time().try_init() } else { builder.with_timer(SystemTime).try_init() }
        }
    };
    done.map_err(|_| LogError::AlreadySet)
}

/// systemd sets this variable when standard error goes to the journal, which stamps each line itself.
fn under_journald() -> bool {
    std::env::var_os("JOURNAL_STREAM").is_some() && !std::io::stderr().is_terminal()
}

/// What is logged: the variable, else the config, else [`LEVEL_DEFAULT`].
fn filter(variable: Option<&str>, config_level: Option<&str>) -> Result<EnvFilter, LogError> {
    let (directives, origin) = match (variable, config_level) {
        (Some(text), _) if !text.trim().is_empty() => (text.trim(), "LOUPE_LOG"),
        (_, Some(text)) if !text.trim().is_empty() => (text.trim(), "the config"),
        _ => (LEVEL_DEFAULT, "the default"),
    };
    // `EnvFilter` would take any word for the name of a target: a mistyped level must not silence the log.
    let suspect = directives.split(',').map(str::trim).find(|part| !part.contains(['=', ':', '[']) && !is_level(part));
    if let Some(word) = suspect {
        let reason = format!("`{word}` is none of error, warn, info, debug, trace, off");
        return Err(LogError::Level { directives: directives.to_owned(), origin, reason });
    }
    EnvFilter::try_new(directives).map_err(|error| LogError::Level {
        directives: directives.to_owned(),
        origin,
        reason: error.to_string(),
    })
}

fn is_level(word: &str) -> bool {
    ["error", "warn", "info", "debug", "trace", "off"].iter().any(|level| word.eq_ignore_ascii_case(level))
}

#[cfg(test)]
mod tests {
    use super::filter;

    fn check(variable: Option<&str>, config: Option<&str>, expected: &str) {
        let got = match filter(variable, config) {
            Ok(filter) => filter.to_string(),
            Err(error) => error.to_string(),
        };
        assert!(got.contains(expected), "`{got}` lacks `{expected}`");
    }

    #[test]
    fn the_variable_outranks_the_config_which_outranks_the_default() {
        check(None, None, "info");
        check(Some(" "), Some("warn"), "warn");
        check(Some("debug"), Some("warn"), "debug");
        check(Some("info,loupe::uplink=debug"), None, "loupe::uplink=debug");
    }

    #[test]
    fn a_mistyped_level_is_named_with_its_origin() {
        check(Some("inof"), None, "from LOUPE_LOG: `inof` is none of");
        check(None, Some("loupe=verbose"), "from the config");
    }
}
