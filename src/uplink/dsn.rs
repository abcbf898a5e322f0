//! The DSN: where the central database is, as whom to log in, and how the way there is protected.
//!
//! A DSN is a URL (`postgresql://user:password@host:port/database?sslmode=verify-full`) or key=value pairs, as libpq
//! reads them. `sslmode` and `sslrootcert` are read here, since the driver knows only three of the modes:
//!
//! | sslmode | the connection | the certificate |
//! |---|---|---|
//! | `disable` | in the clear, with a warning where the server is not on this machine | — |
//! | `prefer` (default) | to this machine in the clear; elsewhere encrypted where the server offers it, else in the clear; always with a warning | its authority, only with sslrootcert |
//! | `verify-ca` | encrypted | its authority |
//! | `verify-full`, `require` | encrypted | its authority, time and name |
//!
//! `require` is stricter here than in libpq, where it checks nothing. Authorities are those of the system (or of
//! SSL_CERT_FILE), or those in the PEM file that sslrootcert names; `sslrootcert=system` is the former.

use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio_postgres::Config;
use tokio_postgres::config::{Host, SslMode};

use super::{Secret, UplinkError};
use crate::limits;

/// What the driver takes for "not said".
const KEEPALIVES_IDLE_UNSAID: Duration = Duration::from_secs(2 * 60 * 60);

/// How the connection is protected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TlsMode {
    Disable,
    Prefer,
    Require,
    VerifyCa,
    VerifyFull,
}

impl TlsMode {
    fn parse(text: &str) -> Option<Self> {
        Some(match text {
            "disable" => Self::Disable,
            "prefer" => Self::Prefer,
            "require" => Self::Require,
            "verify-ca" => Self::VerifyCa,
            "verify-full" => Self::VerifyFull,
            _ => return None,
        })
    }

    /// As a DSN says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Disable => "disable",
            Self::Prefer => "prefer",
            Self::Require => "require",
            Self::VerifyCa => "verify-ca",
            Self::VerifyFull => "verify-full",
        }
    }

    /// What the driver is told; it checks nothing itself.
    fn for_driver(self) -> SslMode {
        match self {
            Self::Disable => SslMode::Disable,
            Self::Prefer => SslMode::Prefer,
            Self::Require | Self::VerifyCa | Self::VerifyFull => SslMode::Require,
        }
    }
}

/// A DSN, understood.
#[derive(Debug)]
pub(super) struct Dsn {
    pub config: Config,
    pub tls: TlsMode,
    /// PEM file of the authorities; `None` for those of the system.
    pub root_cert: Option<PathBuf>,
}

impl Dsn {
    /// # Errors
    /// When it is malformed; no error repeats any of it.
    pub fn parse(dsn: &Secret) -> Result<Self, UplinkError> {
        let (rest, pairs) = take_tls_parameters(dsn.expose().trim()).ok_or(UplinkError::Dsn)?;
        let mut config: Config = rest.parse().map_err(|_| UplinkError::Dsn)?;
        if config.get_hosts().is_empty() {
            return Err(UplinkError::Dsn);
        }
        let mut tls = TlsMode::Prefer;
        let mut root_cert = None;
        for (name, value) in pairs {
            match name {
                "sslmode" => {
                    tls = TlsMode::parse(&value).ok_or(UplinkError::DsnParameter {
                        name,
                        expected: "disable, prefer, require, verify-ca or verify-full",
                    })?;
                }
                _ if value == "system" => root_cert = None,
                _ if value.is_empty() => {
                    return Err(UplinkError::DsnParameter { name, expected: "the path of a PEM file, or system" });
                }
                _ => root_cert = Some(PathBuf::from(value)),
            }
        }
        config.ssl_mode(tls.for_driver());
        set_defaults(&mut config);
        Ok(Self { config, tls, root_cert })
    }

    /// Whether the way to the server does not leave this machine.
    pub fn is_local(&self) -> bool {
        self.config.get_hosts().iter().all(|host| match host {
            Host::Tcp(name) => ["localhost", "127.0.0.1", "::1"].contains(&name.as_str()),
            Host::Unix(_) => true,
        })
    }

    pub fn root_cert(&self) -> Option<&Path> {
        self.root_cert.as_deref()
    }
}

/// A dead peer is found by the kernel too, not only by the time limits of the statements.
fn set_defaults(config: &mut Config) {
    if config.get_connect_timeout().is_none() {
        config.connect_timeout(limits::UPLINK_CONNECT_TIME_MAX);
    }
    if config.get_application_name().is_none() {
        config.application_name("loupe");
    }
    if config.get_tcp_user_timeout().is_none() {
        config.tcp_user_timeout(limits::UPLINK_UNACKNOWLEDGED_MAX);
    }
    if config.get_keepalives_idle() == KEEPALIVES_IDLE_UNSAID {
        config.keepalives_idle(limits::UPLINK_KEEPALIVE_IDLE);
    }
    if config.get_keepalives_interval().is_none() {
        config.keepalives_interval(limits::UPLINK_KEEPALIVE_INTERVAL);
    }
    if config.get_keepalives_retries().is_none() {
        config.keepalives_retries(limits::UPLINK_KEEPALIVE_RETRIES);
    }
}

type TlsParameters = Vec<(&'static str, String)>;

fn our_name(name: &str) -> Option<&'static str> {
    ["sslmode", "sslrootcert"].into_iter().find(|ours| *ours == name)
}

/// The DSN without its TLS parameters, and those.
fn take_tls_parameters(dsn: &str) -> Option<(String, TlsParameters)> {
    let is_url = dsn.starts_with("postgresql://") || dsn.starts_with("postgres://");
    if is_url { take_from_url(dsn) } else { take_from_pairs(dsn) }
}

fn take_from_url(dsn: &str) -> Option<(String, TlsParameters)> {
    // The query begins behind the login, whose password may hold a question mark.
    let login_end = dsn.find('@').map_or(0, |at| at + 1);
    let Some(mark) = dsn[login_end..].find('?').map(|found| login_end + found) else {
        return Some((dsn.to_owned(), Vec::new()));
    };
    let (address, query) = (&dsn[..mark], &dsn[mark + 1..]);
    let mut kept = Vec::new();
    let mut taken = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=')?;
        match our_name(name) {
            Some(ours) => taken.push((ours, percent_decoded(value)?)),
            None => kept.push(pair),
        }
    }
    let rest = if kept.is_empty() { address.to_owned() } else { format!("{address}?{}", kept.join("&")) };
    Some((rest, taken))
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        rest = tail;
        if *first == b'%' {
            let (digits, tail) = rest.split_at_checked(2)?;
            bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
            rest = tail;
        } else {
            bytes.push(*first);
        }
    }
    String::from_utf8(bytes).ok()
}

fn take_from_pairs(dsn: &str) -> Option<(String, TlsParameters)> {
    let mut kept = Vec::new();
    let mut taken = Vec::new();
    let mut rest = dsn.trim_start();
    while !rest.is_empty() {
        let (name, after) = rest.split_once('=')?;
        let (value, after) = value_of(after.trim_start())?;
        match our_name(name.trim()) {
            Some(ours) => taken.push((ours, value)),
            None => kept.push(format!("{}='{}'", name.trim(), value.replace('\\', "\\\\").replace('\'', "\\'"))),
        }
        rest = after.trim_start();
    }
    Some((kept.join(" "), taken))
}

/// A value, bare or in single quotes, with its backslashes read, and what follows it.
fn value_of(text: &str) -> Option<(String, &str)> {
    let is_quoted = text.starts_with('\'');
    let mut value = String::new();
    let mut characters = text.char_indices().skip(usize::from(is_quoted));
    while let Some((at, character)) = characters.next() {
        match character {
            '\\' => value.push(characters.next()?.1),
            '\'' if is_quoted => return Some((value, &text[at + 1..])),
            _ if !is_quoted && character.is_whitespace() => return Some((value, &text[at..])),
            _ => value.push(character),
        }
    }
    if is_quoted { None } else { Some((value, "")) }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use tokio_postgres::config::Host;

    use super::{Dsn, TlsMode};
    use crate::limits;
    use crate::uplink::Secret;

    fn parse(dsn: &str) -> Dsn {
        Dsn::parse(&Secret::new(dsn)).unwrap()
    }

    #[test]
    fn a_malformed_dsn_is_refused_without_repeating_it() {
        let dsns = [
            "hunter2",
            "postgresql://u:hunter2@h:port/db",
            "hunter2=x host=h",
            "",
            "host='hunter2",
            "host=h password=hunter2 sslmode=allow",
            "postgresql://u@h/db?sslmode=hunter2",
            "postgresql://u@h/db?sslmode",
            "postgresql://u@h/db?sslrootcert=%zz",
            "host=h sslrootcert=''",
        ];
        for dsn in dsns {
            let error = Dsn::parse(&Secret::new(dsn)).unwrap_err().to_string();
            assert!(!error.contains("hunter2") && error.contains("DSN"), "{error}");
        }
    }

    #[test]
    fn every_mode_is_read_in_both_forms() {
        let modes = ["disable", "prefer", "require", "verify-ca", "verify-full"];
        for mode in modes {
            let url = parse(&format!("postgresql://u:p@h:6432/db?connect_timeout=3&sslmode={mode}"));
            let pairs = parse(&format!("host=h user=u password=p sslmode = '{mode}' connect_timeout=3"));
            for dsn in [url, pairs] {
                assert_eq!(dsn.tls.as_str(), mode);
                assert_eq!(dsn.config.get_connect_timeout().unwrap().as_secs(), 3);
                assert_eq!(dsn.config.get_hosts(), [Host::Tcp("h".to_owned())]);
            }
        }
        assert_eq!(parse("postgresql://u@h/db").tls, TlsMode::Prefer);
    }

    #[test]
    fn a_password_may_look_like_a_parameter() {
        let dsn = parse("postgresql://u:a?sslmode=b@h/db?sslmode=verify-ca");
        assert_eq!((dsn.config.get_password().unwrap(), dsn.tls), (b"a?sslmode=b".as_slice(), TlsMode::VerifyCa));
        let dsn = parse(r"password='it\'s sslmode=\\disable' host=h sslmode=verify-full");
        assert_eq!(
            (dsn.config.get_password().unwrap(), dsn.tls),
            (br"it's sslmode=\disable".as_slice(), TlsMode::VerifyFull)
        );
    }

    #[test]
    fn the_authority_is_named_by_path_or_is_the_systems() {
        let path = |dsn: &str| parse(dsn).root_cert.clone();
        assert_eq!(path("postgresql://u@h/db?sslrootcert=/etc/my%20ca.pem").unwrap(), Path::new("/etc/my ca.pem"));
        assert_eq!(path("host=h sslrootcert='/etc/my ca.pem'").unwrap(), Path::new("/etc/my ca.pem"));
        assert_eq!(path("host=h sslrootcert=system"), None);
    }

    #[test]
    fn a_dead_peer_is_looked_for_unless_the_dsn_says_otherwise() {
        let config = parse("host=h").config;
        assert_eq!(config.get_tcp_user_timeout(), Some(&limits::UPLINK_UNACKNOWLEDGED_MAX));
        assert_eq!(config.get_keepalives_idle(), limits::UPLINK_KEEPALIVE_IDLE);
        let config = parse("host=h tcp_user_timeout=7 keepalives_idle=8").config;
        assert_eq!(config.get_tcp_user_timeout().unwrap().as_secs(), 7);
        assert_eq!(config.get_keepalives_idle().as_secs(), 8);
    }
}
