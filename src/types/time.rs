//! Points in time as the ledger keeps them.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Microseconds since 1970-01-01 UTC; serialised as RFC 3339 with six decimals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Timestamp(i64);

impl Timestamp {
    #[must_use]
    pub fn from_micros(micros: i64) -> Self {
        Self(micros)
    }

    #[must_use]
    pub fn as_micros(self) -> i64 {
        self.0
    }

    /// Milliseconds from `earlier` to `self`, negative when `earlier` is later.
    #[must_use]
    pub fn ms_since(self, earlier: Timestamp) -> f64 {
        (self.0 - earlier.0) as f64 / 1_000.0
    }

    fn to_jiff(self) -> jiff::Timestamp {
        jiff::Timestamp::from_microsecond(self.0).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
    }

    /// `YYYYMMDD` in the device's time zone, as inspection codes carry it.
    #[must_use]
    pub fn local_day(self) -> String {
        self.to_jiff().to_zoned(jiff::tz::TimeZone::system()).strftime("%Y%m%d").to_string()
    }

    /// Seconds since midnight in the device's time zone, 0 to 86 399; a clock set back gives some of them twice.
    #[must_use]
    pub fn local_second_of_day(self) -> i64 {
        let time = self.to_jiff().to_zoned(jiff::tz::TimeZone::system()).time();
        i64::from(time.hour()) * 3_600 + i64::from(time.minute()) * 60 + i64::from(time.second())
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:.6}", self.to_jiff())
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let instant: jiff::Timestamp = text.parse().map_err(serde::de::Error::custom)?;
        Ok(Self(instant.as_microsecond()))
    }
}

#[cfg(test)]
mod tests {
    use super::Timestamp;

    #[test]
    fn rfc3339_keeps_the_microseconds() {
        let time = Timestamp::from_micros(1_763_697_600_000_001);
        assert_eq!(time.to_string(), "2025-11-21T04:00:00.000001Z");
        let json = serde_json::to_string(&time).unwrap();
        assert_eq!(serde_json::from_str::<Timestamp>(&json).unwrap(), time);
    }
}
